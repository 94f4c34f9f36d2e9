import type { ServiceImpl } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import { joinHost } from '../../identity/index.ts';
import type { ApiContext } from '../edge/index.ts';

export function joinService({ store, ca, system }: ApiContext): ServiceImpl<typeof api.JoinService> {
  return { join: async (request) => await joinHost({ store, ca, linkAddress: system.linkAddress }, request) };
}
