import * as limits from '../limits.ts';
import type { Tx, CertificateTable, SandboxTokenTable, StoredIdentity, StoredSandbox } from '../database/index.ts';
import { dropOrphanedTokens, identityOf, identityRow, isUsedElsewhere } from './identity-rows.ts';
import { sandboxRow } from './rows.ts';
import { currentStart } from '../model/index.ts';
import type { Registration, RegistrationResult } from './drafts.ts';
import { emitViewed } from './view-rows.ts';

/** Registers a locked sandbox, which may already have an identity (I-15, I-17). */
export async function registerIdentity(tx: Tx, sandbox: StoredSandbox, registration: Registration): Promise<RegistrationResult> {
  const { sandboxId, thumbprint, tokenHash, accessTokenHash } = registration;
  const row = await identityOf(tx, sandboxId);
  const token = await tokenOf(tx, registration);
  if (row?.thumbprint === thumbprint) {
    // I-15: init repeats a Register whose response was lost, with the certificate and its token.
    if (token === undefined) return { kind: 'refused', why: 'token' };
    await storeAccessToken(tx, registration);
    return { kind: 'welcome', again: true, identity: identityRow(row) };
  }
  const certificate = await certificateOf(tx, registration);
  if (token?.consumed_at !== null || certificate === undefined || (row !== undefined && !follows(certificate, row))) {
    return { kind: 'refused', why: row === undefined ? 'token' : 'replay' };
  }
  if (await isUsedElsewhere(tx, sandboxId, thumbprint)) return { kind: 'refused', why: 'collision' };

  // I-17: the token is consumed by the transaction that writes the row.
  await tx.db.updateTable('sandbox_tokens').set({ consumed_at: tx.now }).where('hash', '=', tokenHash).execute();
  await dropSuperseded(tx, certificate);
  await tx.db.deleteFrom('identities').where('sandbox_id', '=', sandboxId).execute();
  await tx.db.deleteFrom('sandbox_tokens').where('sandbox_id', '=', sandboxId).where('scope', '=', 'control').execute();
  const inserted = await tx.db
    .insertInto('identities')
    .values({
      sandbox_id: sandboxId,
      thumbprint,
      next_thumbprint: null,
      project: registration.project,
      name: registration.name,
      common_name: registration.commonName,
      issue: certificate.issue,
      request_hash: certificate.request_hash,
      registered_at: tx.now,
      last_seen_at: tx.now,
    })
    .returningAll()
    .executeTakeFirstOrThrow();
  await storeAccessToken(tx, { sandboxId, thumbprint, accessTokenHash });
  const data = { ok: true, thumbprint, startCount: currentStart(sandboxRow(sandbox)), message: '' };
  await emitViewed(tx, sandboxId, { kind: 'identity', type: 'AgentRegistered', subject: sandboxId, data });
  return { kind: 'welcome', again: false, identity: identityRow(inserted) };
}

/** Whether the certificate is of a later start than the registered one: only one certificate of a start may register. */
function follows(certificate: CertificateTable, row: StoredIdentity): boolean {
  return certificate.issue > row.issue && certificate.request_hash !== row.request_hash;
}

/** The bootstrap token, spent or not, if it was issued for this certificate of this sandbox. */
async function tokenOf(tx: Tx, { sandboxId, thumbprint, tokenHash }: Registration): Promise<SandboxTokenTable | undefined> {
  return await tx.db
    .selectFrom('sandbox_tokens')
    .selectAll()
    .where('hash', '=', tokenHash)
    .where('scope', 'in', ['register', 'again'])
    .where('sandbox_id', '=', sandboxId)
    .where('thumbprint', '=', thumbprint)
    .where('expires_at', '>', tx.now)
    .executeTakeFirst();
}

async function certificateOf(tx: Tx, { sandboxId, thumbprint }: Registration): Promise<CertificateTable | undefined> {
  return await tx.db
    .selectFrom('sandbox_certificates')
    .selectAll()
    .where('thumbprint', '=', thumbprint)
    .where('sandbox_id', '=', sandboxId)
    .executeTakeFirst();
}

/** Deletes the certificates that can no longer register: those of earlier starts, and the others of this start. */
async function dropSuperseded(tx: Tx, { sandbox_id, thumbprint, issue, request_hash }: CertificateTable): Promise<void> {
  await tx.db
    .deleteFrom('sandbox_certificates')
    .where('sandbox_id', '=', sandbox_id)
    .where('thumbprint', '<>', thumbprint)
    .where((eb) => eb.or([eb('issue', '<=', issue), eb('request_hash', '=', request_hash)]))
    .execute();
  await dropOrphanedTokens(tx, sandbox_id as Registration['sandboxId']);
}

/** Stores the access token beside the newest few earlier ones: each repeated Register, after a lost response, issues another. */
async function storeAccessToken(tx: Tx, to: Pick<Registration, 'sandboxId' | 'thumbprint' | 'accessTokenHash'>): Promise<void> {
  const { sandboxId, thumbprint, accessTokenHash } = to;
  const older = await tx.db
    .selectFrom('sandbox_tokens')
    .select('hash')
    .where('sandbox_id', '=', sandboxId)
    .where('scope', '=', 'control')
    .orderBy('issued_at', 'desc')
    .orderBy('hash')
    .offset(limits.accessTokensPerSandbox - 1)
    .limit(limits.rowsPerStatement)
    .execute();
  if (older.length > 0) {
    const hashes = older.map((token) => token.hash);
    await tx.db.deleteFrom('sandbox_tokens').where('hash', 'in', hashes).execute();
  }
  await tx.db
    .insertInto('sandbox_tokens')
    .values({
      hash: accessTokenHash,
      scope: 'control',
      sandbox_id: sandboxId,
      thumbprint,
      issued_at: tx.now,
      expires_at: null,
      consumed_at: null,
    })
    .execute();
}
