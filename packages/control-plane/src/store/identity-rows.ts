import type { Kysely } from 'kysely';
import type { Name, Project, SandboxId } from '@drover/foundation';
import type { Identity } from '../model/index.ts';
import { prepared, type Tx, type Schema, type StoredIdentity } from '../database/index.ts';

export function identityRow(row: StoredIdentity): Identity {
  return {
    thumbprint: row.thumbprint,
    nextThumbprint: row.next_thumbprint ?? undefined,
    sandboxId: row.sandbox_id as SandboxId,
    project: row.project as Project,
    name: row.name as Name,
    commonName: row.common_name,
    registeredAt: row.registered_at,
    lastSeenAt: row.last_seen_at,
  };
}

const identityById = prepared((db, { id }: { readonly id: string }) =>
  db.selectFrom('identities').selectAll().where('sandbox_id', '=', id),
);

export async function identityOf(tx: { readonly db: Kysely<Schema> }, id: SandboxId): Promise<StoredIdentity | undefined> {
  return (await identityById(tx.db, { id })).rows[0];
}

const otherWith = prepared((db, { id, thumbprint }: { readonly id: string; readonly thumbprint: string }) =>
  db
    .selectFrom('identities')
    .select('sandbox_id')
    .where('sandbox_id', '<>', id)
    .where((eb) => eb.or([eb('thumbprint', '=', thumbprint), eb('next_thumbprint', '=', thumbprint)]))
    .limit(1),
);

/** I-7: whether another sandbox has the thumbprint. */
export async function isUsedElsewhere(tx: Tx, id: SandboxId, thumbprint: string): Promise<boolean> {
  return (await otherWith(tx.db, { id, thumbprint })).rows.length > 0;
}

const unspentToken = prepared((db, { id, thumbprint, now }: { readonly id: string; readonly thumbprint: string; readonly now: number }) =>
  db
    .selectFrom('sandbox_tokens')
    .select('hash')
    .where('sandbox_id', '=', id)
    .where('thumbprint', '=', thumbprint)
    .where('scope', '=', 'register')
    .where('consumed_at', 'is', null)
    .where('expires_at', '>', now)
    .limit(1),
);

/** Whether the token that was issued with this certificate is unspent. */
export async function hasOwnToken(
  at: { readonly db: Kysely<Schema>; readonly now: number },
  id: SandboxId,
  thumbprint: string,
): Promise<boolean> {
  return (await unspentToken(at.db, { id, thumbprint, now: at.now })).rows.length > 0;
}

export async function dropCertificate(tx: Tx, thumbprint: string): Promise<void> {
  await tx.db.deleteFrom('sandbox_certificates').where('thumbprint', '=', thumbprint).execute();
}

const deleteOrphanedTokens = prepared((db, { id }: { readonly id: string }) => {
  const kept = db.selectFrom('sandbox_certificates').select('thumbprint').where('sandbox_id', '=', id);
  return db.deleteFrom('sandbox_tokens').where('sandbox_id', '=', id).where('thumbprint', 'not in', kept);
});

/** Deletes the tokens whose certificate is deleted. */
export async function dropOrphanedTokens(tx: Tx, id: SandboxId): Promise<void> {
  await deleteOrphanedTokens(tx.db, { id });
}
