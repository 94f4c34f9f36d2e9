import type { SandboxId } from '@drover/foundation';
import type { SandboxEvent } from '../events/index.ts';
import type { Tx, StoredIdentity } from '../database/index.ts';
import type { EvictionCause } from '../model/index.ts';
import { emitViewed } from './view-rows.ts';

/**
 * Deletes the identity and the tokens of a locked sandbox, and emits IdentityEvicted (I-11). A revocation keeps the certificates: a reinstated
 * sandbox may register again with the certificate that it has.
 * @returns the deleted row
 */
export async function evictIdentity(tx: Tx, id: SandboxId, why: EvictionCause): Promise<StoredIdentity | undefined> {
  const row = await tx.db.deleteFrom('identities').where('sandbox_id', '=', id).returningAll().executeTakeFirst();
  await tx.db.deleteFrom('sandbox_tokens').where('sandbox_id', '=', id).execute();
  if (why !== 'revoked') await tx.db.deleteFrom('sandbox_certificates').where('sandbox_id', '=', id).execute();
  if (row === undefined) return undefined;
  const data = { thumbprint: row.thumbprint, why };
  const event = { kind: 'identity', type: 'IdentityEvicted', subject: id, data } satisfies SandboxEvent;
  // A destroyed or reaped sandbox has no view.
  if (why === 'destroyed' || why === 'reaped') tx.emit(event);
  else await emitViewed(tx, id, event);
  return row;
}
