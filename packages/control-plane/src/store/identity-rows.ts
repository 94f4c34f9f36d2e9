import type { Kysely } from 'kysely';
import type { Name, Project, SandboxId } from '@drover/foundation';
import type { Identity } from '../model/index.ts';
import type { Tx, Schema, StoredIdentity } from '../database/index.ts';

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

export async function identityOf(tx: Tx, id: SandboxId): Promise<StoredIdentity | undefined> {
  return await tx.db.selectFrom('identities').selectAll().where('sandbox_id', '=', id).executeTakeFirst();
}

/** I-7: another sandbox has it. */
export async function takenElsewhere(tx: Tx, id: SandboxId, thumbprint: string): Promise<boolean> {
  const other = await tx.db
    .selectFrom('identities')
    .select('sandbox_id')
    .where('sandbox_id', '<>', id)
    .where((eb) => eb.or([eb('thumbprint', '=', thumbprint), eb('next_thumbprint', '=', thumbprint)]))
    .executeTakeFirst();
  return other !== undefined;
}

/** The token that came with this certificate is unspent. */
export async function hasOwnToken(
  at: { readonly db: Kysely<Schema>; readonly now: number },
  id: SandboxId,
  thumbprint: string,
): Promise<boolean> {
  const token = await at.db
    .selectFrom('sandbox_tokens')
    .select('hash')
    .where('sandbox_id', '=', id)
    .where('thumbprint', '=', thumbprint)
    .where('scope', '=', 'register')
    .where('consumed_at', 'is', null)
    .where('expires_at', '>', at.now)
    .executeTakeFirst();
  return token !== undefined;
}

export async function dropCertificate(tx: Tx, thumbprint: string): Promise<void> {
  await tx.db.deleteFrom('sandbox_certificates').where('thumbprint', '=', thumbprint).execute();
}

/** After certificates of the sandbox were dropped: the tokens that were for them go. */
export async function dropBareTokens(tx: Tx, id: SandboxId): Promise<void> {
  const kept = tx.db.selectFrom('sandbox_certificates').select('thumbprint').where('sandbox_id', '=', id);
  await tx.db.deleteFrom('sandbox_tokens').where('sandbox_id', '=', id).where('thumbprint', 'not in', kept).execute();
}
