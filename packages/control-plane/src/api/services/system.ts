import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { ServiceImpl } from '@connectrpc/connect';
import { version } from '@drover/foundation';
import { api } from '@drover/protocol';
import type { ApiContext } from '../edge/index.ts';

export function systemService({ store, system }: ApiContext): ServiceImpl<typeof api.SystemService> {
  return {
    getVersion() {
      return create(api.VersionSchema, {
        version,
        trustDomain: system.trustDomain,
        store: store.kind,
        startedAt: timestampFromMs(system.startedAt),
      });
    },
  };
}
