import type { SandboxId } from '@drover/foundation';
import type { SandboxEvent } from '../events/index.ts';
import type { Tx, StoredIdentity } from '../database/index.ts';
import type { EvictionCause } from '../model/index.ts';
import { emitViewed } from './view-rows.ts';

/**
 * Takes away the row of a locked sandbox and its tokens, and emits it (I-11); gives the row that was there. What was revoked may register
 * again with its certificate once that is lifted, so its certificates stay known.
 */
export async function evictIdentity(tx: Tx, id: SandboxId, why: EvictionCause): Promise<StoredIdentity | undefined> {
  const row = await tx.db.deleteFrom('identities').where('sandbox_id', '=', id).returningAll().executeTakeFirst();
  await tx.db.deleteFrom('sandbox_tokens').where('sandbox_id', '=', id).execute();
  if (why !== 'revoked') await tx.db.deleteFrom('sandbox_certificates').where('sandbox_id', '=', id).execute();
  if (row === undefined) return undefined;
  const data = { thumbprint: row.thumbprint, why };
  const event = { kind: 'identity', type: 'IdentityEvicted', subject: id, data } satisfies SandboxEvent;
  // The sandbox is gone, and its view with it.
  if (why === 'destroyed' || why === 'reaped') tx.emit(event);
  else await emitViewed(tx, id, event);
  return row;
}
