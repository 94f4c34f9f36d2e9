import type { StoredEvent } from '../events/index.ts';

/** Whether the event invalidates the trust decision of an open session (I-11). */
export function changesIdentity({ type, data }: Pick<StoredEvent, 'type' | 'data'>): boolean {
  // A revocation of a registered sandbox also has the event of the eviction.
  return type === 'IdentityEvicted' || type === 'IdentityReinstated' || (type === 'IdentityRevoked' && data['thumbprint'] === undefined);
}
