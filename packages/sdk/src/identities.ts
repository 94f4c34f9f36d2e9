import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';

/** The registry of sandbox identities (I-7): by sandbox (id, `name` or `project/name`) or by thumbprint. Everything rejects with a DroverError. */
export interface IdentitiesApi {
  /** Sorted by project and name (I-10). */
  list(signal?: AbortSignal): Promise<api.Identity[]>;
  get(reference: string, signal?: AbortSignal): Promise<api.Identity>;
  /** Takes the row away and ends the session; the sandbox registers again at its next start. Gives the row that was. */
  evict(reference: string, signal?: AbortSignal): Promise<api.Identity>;
}

export function identitiesApi(client: Client<typeof api.IdentityService>, calls: Calls): IdentitiesApi {
  return {
    async list(signal) {
      return (await calls.ask(() => client.listIdentities({}, withSignal(signal)), signal)).identities;
    },
    get: (identity, signal) => calls.ask(() => client.getIdentity({ identity }, withSignal(signal)), signal),
    evict: (identity, signal) =>
      calls.mutate((idempotencyKey) => client.evictIdentity({ idempotencyKey, identity }, withSignal(signal)), signal),
  };
}
