import type { StoredEvent } from '../events/index.ts';

/** I-11: after this event the sandbox is no longer, or again, the one with which its session was opened. */
export function changesIdentity({ type, data }: Pick<StoredEvent, 'type' | 'data'>): boolean {
  // A revocation of a registered sandbox also has the event of the eviction.
  return type === 'IdentityEvicted' || type === 'IdentityReinstated' || (type === 'IdentityRevoked' && data['thumbprint'] === undefined);
}
