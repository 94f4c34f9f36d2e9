import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { api } from '@drover/protocol';
import { type Identity, labelOf } from '../../model/index.ts';
import type { Tables } from '../../store/index.ts';
import { type ApiContext, once } from '../edge/index.ts';
import { identityToWire } from '../convert/index.ts';

/** The registry (I-7 to I-11). The event of an eviction ends the session. */
export function identityService(context: ApiContext): ServiceImpl<typeof api.IdentityService> {
  const { store, registry } = context;

  return {
    async listIdentities() {
      return create(api.ListIdentitiesResponseSchema, { identities: (await registry.snapshot()).map(identityToWire) });
    },

    async getIdentity(request) {
      return identityToWire(await find(store, request.identity));
    },

    async evictIdentity(request, { values }) {
      return await once(store, values, api.IdentityService.method.evictIdentity, request, async (tables) => {
        const identity = await find(tables, request.identity);
        await tables.identities.evict(identity.sandboxId, 'evicted');
        return identityToWire(identity);
      });
    },
  };
}

/** @throws {DroverError} sandbox-not-found, invalid-argument */
async function find({ identities, sandboxes }: Pick<Tables, 'identities' | 'sandboxes'>, reference: string): Promise<Identity> {
  const row = await sandboxes.find(reference);
  const identity = await identities.findBySandbox(row.id);
  if (identity !== undefined) return identity;
  throw new DroverError('sandbox-not-found', `sandbox ${labelOf(row)} is not in the registry`, {
    hint: `\`drover sandbox explain ${labelOf(row)}\` shows why`,
  });
}
