import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import type { Calls } from './calls.ts';

/** The registry of sandbox identities (I-7): by sandbox (id, `name` or `project/name`) or by thumbprint. Everything rejects with a DroverError. */
export type IdentitiesApi = ReturnType<typeof identitiesApi>;

export function identitiesApi(client: Client<typeof api.IdentityService>, calls: Calls) {
  return {
    /** Sorted by project and name (I-10). */
    list: async (signal?: AbortSignal): Promise<api.Identity[]> =>
      (await calls.ask((options) => client.listIdentities({}, options), signal)).identities,
    get: (identity: string, signal?: AbortSignal): Promise<api.Identity> =>
      calls.ask((options) => client.getIdentity({ identity }, options), signal),
    /** Removes the row, which it returns, and ends the session. The sandbox registers again at its next start. */
    evict: (identity: string, signal?: AbortSignal): Promise<api.Identity> =>
      calls.mutate((idempotencyKey, options) => client.evictIdentity({ idempotencyKey, identity }, options), signal),
  };
}
