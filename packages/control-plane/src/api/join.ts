import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError, hasCode } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { joinHost } from '../identity/index.ts';
import type { ApiContext } from './context.ts';

export function joinService(context: ApiContext): ServiceImpl<typeof api.JoinService> {
  const { store, ca, logger } = context;
  return {
    async join(request) {
      try {
        return await joinHost({ store, ca, linkAddress: context.system.linkAddress }, request);
      } catch (error) {
        if (!hasCode(error, 'join-refused')) throw error;
        // L-3: the log alone says why; on the wire every refusal is the same.
        const why = error.cause instanceof Error ? error.cause.message : error.message;
        logger.warn({ hostId: request.hostId.slice(0, 40), why }, 'a host was refused');
        throw new DroverError('join-refused', 'the join was refused', {
          hint: 'make a new token with `drover host token` and try again',
        });
      }
    },
  };
}
