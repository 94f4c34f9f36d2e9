import { sql } from 'kysely';
import { DroverError, type SandboxId } from '@drover/foundation';
import type { Bearer, EvictionCause, Identity, TokenScope } from '../model/index.ts';
import * as limits from '../limits.ts';
import { changeSandbox, lockSandboxes } from './change.ts';
import { isUniqueViolation, type Database, type Tx, type StoredIdentity, type StoredSandbox } from '../database/index.ts';
import type { Registration, RegistrationResult } from './drafts.ts';
import { evictIdentity } from './evict.ts';
import { dropCertificate, dropOrphanedTokens, hasOwnToken, identityOf, identityRow, isUsedElsewhere } from './identity-rows.ts';
import { registerIdentity } from './register-identity.ts';

/**
 * The registry's rows (I-7). Every method that inserts a row, and the deletion of a sandbox, lock the sandbox's row. So a deleted sandbox has
 * no row here (I-11).
 */
export class IdentityStore {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /**
   * Stores a certificate for a start of the sandbox, and the hash of its token. All certificates of one start share the hash of their signing
   * request. Beyond `certificatesPerSandbox`, the oldest certificates are deleted with their tokens.
   * @throws {DroverError} sandbox-not-found
   */
  async issue(token: {
    readonly hash: string;
    readonly sandboxId: SandboxId;
    readonly thumbprint: string;
    readonly requestHash: string;
    readonly expiresAt: number;
  }): Promise<void> {
    await this.#database.transact(async (tx) => {
      const { hash, sandboxId, thumbprint, requestHash, expiresAt } = token;
      if ((await this.#lockPresent(tx, sandboxId)) === undefined) {
        throw new DroverError('sandbox-not-found', `there is no sandbox ${sandboxId}`);
      }
      const registered = await identityOf(tx, sandboxId);
      const newest = await tx.db
        .selectFrom('sandbox_certificates')
        .select((eb) => eb.fn.max('issue').as('issue'))
        .where('sandbox_id', '=', sandboxId)
        .executeTakeFirst();
      const issue = Math.max(registered?.issue ?? 0, newest?.issue ?? 0) + 1;
      await tx.db
        .insertInto('sandbox_certificates')
        .values({ thumbprint, sandbox_id: sandboxId, issue, request_hash: requestHash, issued_at: tx.now, expires_at: expiresAt })
        .execute();
      await tx.db
        .insertInto('sandbox_tokens')
        .values({
          hash,
          scope: 'register',
          sandbox_id: sandboxId,
          thumbprint,
          issued_at: tx.now,
          expires_at: expiresAt,
          consumed_at: null,
        })
        .execute();
      await tx.db
        .deleteFrom('sandbox_certificates')
        .where('sandbox_id', '=', sandboxId)
        .where('issue', '<=', issue - limits.certificatesPerSandbox)
        .where('issue', '<>', registered?.issue ?? 0)
        .execute();
      await dropOrphanedTokens(tx, sandboxId);
    });
  }

  /**
   * Stores the hash of a replacement token for a certificate whose own token is spent or expired. An earlier replacement is deleted.
   * Returns false when the certificate is unknown, or the sandbox is revoked or registered.
   */
  async issueAgain(token: {
    readonly hash: string;
    readonly sandboxId: SandboxId;
    readonly thumbprint: string;
    readonly expiresAt: number;
  }): Promise<boolean> {
    return await this.#database.transact(async (tx) => {
      const { hash, sandboxId, thumbprint, expiresAt } = token;
      const row = await this.#lockPresent(tx, sandboxId);
      if (row === undefined || row.revoked_at !== null || (await identityOf(tx, sandboxId)) !== undefined) return false;
      const certificate = await tx.db
        .selectFrom('sandbox_certificates')
        .select('thumbprint')
        .where('thumbprint', '=', thumbprint)
        .where('sandbox_id', '=', sandboxId)
        .where('expires_at', '>', tx.now)
        .executeTakeFirst();
      if (certificate === undefined || (await hasOwnToken(tx, sandboxId, thumbprint))) return false;
      await tx.db.deleteFrom('sandbox_tokens').where('sandbox_id', '=', sandboxId).where('scope', '=', 'again').execute();
      await tx.db
        .insertInto('sandbox_tokens')
        .values({ hash, scope: 'again', sandbox_id: sandboxId, thumbprint, issued_at: tx.now, expires_at: expiresAt, consumed_at: null })
        .execute();
      return true;
    });
  }

  /**
   * The transaction of Register (I-15, I-17): checks and consumes the token, finds or inserts the row, stores the access token's hash, and
   * emits AgentRegistered for a new row. Only a certificate that was issued later, with its own unspent token, replaces a row with
   * another thumbprint.
   */
  async register(registration: Registration): Promise<RegistrationResult> {
    try {
      return await this.#database.transact(async (tx) => {
        const sandbox = await this.#lockPresent(tx, registration.sandboxId);
        if (sandbox === undefined || sandbox.desired === 'deleted') return { kind: 'refused', why: 'unknown-sandbox' };
        if (sandbox.revoked_at !== null) return { kind: 'refused', why: 'revoked' };
        return await registerIdentity(tx, sandbox, registration);
      });
    } catch (error) {
      // Another sandbox registered the same certificate between the check and the insert.
      if (isUniqueViolation(error)) return { kind: 'refused', why: 'collision' };
      throw error;
    }
  }

  /** Finds an identity by its present or its next thumbprint. */
  async find(thumbprint: string): Promise<Identity | undefined> {
    const row = await this.#database.db
      .selectFrom('identities')
      .selectAll()
      .where((eb) => eb.or([eb('thumbprint', '=', thumbprint), eb('next_thumbprint', '=', thumbprint)]))
      .executeTakeFirst();
    return row === undefined ? undefined : identityRow(row);
  }

  async findBySandbox(id: SandboxId): Promise<Identity | undefined> {
    const row = await identityOf(this.#database, id);
    return row === undefined ? undefined : identityRow(row);
  }

  async findBySandboxes(ids: readonly SandboxId[]): Promise<ReadonlyMap<SandboxId, Identity>> {
    const found = new Map<SandboxId, Identity>();
    for (let i = 0; i < ids.length; i += limits.rowsPerStatement) {
      const rows = await this.#database.db
        .selectFrom('identities')
        .selectAll()
        .where('sandbox_id', 'in', ids.slice(i, i + limits.rowsPerStatement))
        .execute();
      for (const row of rows.map(identityRow)) found.set(row.sandboxId, row);
    }
    return found;
  }

  /** The sandbox of a token; undefined when the token is unknown or expired. A consumed bootstrap token is still valid here (I-15). */
  async bearer(hash: string): Promise<(Bearer & { readonly thumbprint: string }) | undefined> {
    const token = await this.#database.db.selectFrom('sandbox_tokens').selectAll().where('hash', '=', hash).executeTakeFirst();
    if (token === undefined || (token.expires_at !== null && token.expires_at <= this.#database.clock.now())) return undefined;
    const scope: TokenScope = token.scope === 'control' ? 'control' : 'register';
    return { sandboxId: token.sandbox_id as SandboxId, scope, thumbprint: token.thumbprint };
  }

  /** Whether the token that was issued with this certificate is unspent. A replacement from `issueAgain` does not count. */
  async mayRegister(id: SandboxId, thumbprint: string): Promise<boolean> {
    return await hasOwnToken({ db: this.#database.db, now: this.#database.clock.now() }, id, thumbprint);
  }

  /**
   * Stores the next certificate, which replaces the registered one once the sandbox presents it; emits IdentityRenewed. Returns false if there
   * is no row, or if another sandbox has the thumbprint.
   * @param shown the thumbprint that the sandbox presents now; if it is the next one, that certificate is promoted first
   */
  async setNext(id: SandboxId, thumbprint: string, expiresAt: number, shown = ''): Promise<boolean> {
    try {
      return await this.#database.transact(async (tx) => {
        if ((await this.#lockPresent(tx, id)) === undefined) return false;
        const row = await identityOf(tx, id);
        if (row === undefined || (await isUsedElsewhere(tx, id, thumbprint))) return false;
        // A repeated call: the response to an earlier one may have been lost.
        if (row.thumbprint === thumbprint || row.next_thumbprint === thumbprint) return true;
        if (row.next_thumbprint === shown) await promote(tx, { sandbox_id: id, was: row.thumbprint, is: shown });
        // The sandbox never presented the earlier next certificate, and does not have it.
        else if (row.next_thumbprint !== null) await dropCertificate(tx, row.next_thumbprint);
        await tx.db.updateTable('identities').set({ next_thumbprint: thumbprint }).where('sandbox_id', '=', id).execute();
        // A renewed certificate keeps the issue number, because it belongs to the same start.
        const { issue, request_hash } = row;
        await tx.db
          .insertInto('sandbox_certificates')
          .values({ thumbprint, sandbox_id: id, issue, request_hash, issued_at: tx.now, expires_at: expiresAt })
          .execute();
        tx.emit({ kind: 'identity', type: 'IdentityRenewed', subject: id, data: { thumbprint } });
        return true;
      });
    } catch (error) {
      if (isUniqueViolation(error)) return false;
      throw error;
    }
  }

  /** Updates the last-seen times. A next thumbprint in `batch` becomes the registered one. */
  async seen(batch: readonly { readonly sandboxId: SandboxId; readonly thumbprint: string; readonly at: number }[]): Promise<void> {
    for (let i = 0; i < batch.length; i += limits.rowsPerStatement) await this.#seen(batch.slice(i, i + limits.rowsPerStatement));
  }

  /** Sorted by project and name. */
  async list(): Promise<readonly Identity[]> {
    const rows = await this.#database.db.selectFrom('identities').selectAll().execute();
    // Sorted here, because PostgreSQL sorts by its locale. Names are ASCII.
    const key = (row: StoredIdentity): string => `${row.project}\0${row.name}\0${row.sandbox_id}`;
    return rows
      .map((row) => ({ row, key: key(row) }))
      .sort((a, b) => (a.key < b.key ? -1 : 1))
      .map(({ row }) => identityRow(row));
  }

  /** Deletes the row and its tokens, and emits IdentityEvicted. @returns the deleted row */
  async evict(id: SandboxId, why: EvictionCause): Promise<Identity | undefined> {
    return await this.#database.transact(async (tx) => {
      await lockSandboxes(this.#database, tx, { ids: [id] });
      const row = await evictIdentity(tx, id, why);
      return row === undefined ? undefined : identityRow(row);
    });
  }

  /** Revokes and evicts the identity, or reinstates it (I-4); emits IdentityRevoked or IdentityReinstated. @returns whether it changed */
  async setRevoked(id: SandboxId, revoked: boolean): Promise<boolean> {
    return await this.#database.transact(async (tx) => {
      const row = await this.#lockPresent(tx, id);
      if (row === undefined || (row.revoked_at !== null) === revoked) return false;
      // The reservation does not change, so the host is not locked. The new generation makes the host close or open the registration port.
      await changeSandbox(tx, row, { revoked_at: revoked ? tx.now : null, generation: row.generation + 1 });
      const evicted = revoked ? await evictIdentity(tx, id, 'revoked') : undefined;
      const data = evicted === undefined ? {} : { thumbprint: evicted.thumbprint };
      tx.emit({ kind: 'identity', type: revoked ? 'IdentityRevoked' : 'IdentityReinstated', subject: id, data });
      return true;
    });
  }

  /** The sandboxes with an identity that are deleted or unknown (I-12); at most `listPageMax`. */
  async orphans(): Promise<readonly SandboxId[]> {
    const rows = await this.#database.db
      .selectFrom('identities')
      .leftJoin('sandboxes', 'sandboxes.id', 'identities.sandbox_id')
      .select('identities.sandbox_id')
      .where((eb) => eb.or([eb('sandboxes.id', 'is', null), eb('sandboxes.deleted_at', 'is not', null)]))
      .orderBy('identities.sandbox_id')
      .limit(limits.listPageMax)
      .execute();
    return rows.map((row) => row.sandbox_id as SandboxId);
  }

  /** Deletes tokens and certificates that expired before `expiredBefore`. @returns the number of deleted tokens */
  async trimTokens(expiredBefore: number): Promise<number> {
    return await this.#database.transact(async (tx) => {
      const tokens = await tx.db.deleteFrom('sandbox_tokens').where('expires_at', '<', expiredBefore).executeTakeFirst();
      await tx.db.deleteFrom('sandbox_certificates').where('expires_at', '<', expiredBefore).execute();
      return Number(tokens.numDeletedRows);
    });
  }

  /** Locks and returns the sandbox's row; undefined when it does not exist or is deleted. */
  async #lockPresent(tx: Tx, id: SandboxId): Promise<StoredSandbox | undefined> {
    const [row] = await lockSandboxes(this.#database, tx, { ids: [id] });
    return row === undefined || row.deleted_at !== null ? undefined : row;
  }

  async #seen(batch: Parameters<IdentityStore['seen']>[0]): Promise<void> {
    if (batch.length === 0) return;
    const values = sql.join(batch.map((s) => sql`(${s.sandboxId}, ${s.thumbprint}, cast(${s.at} as bigint))`));
    const saw = sql`with saw (sandbox_id, thumbprint, at) as (values ${values})`;
    const sameSandbox = sql`identities.sandbox_id = saw.sandbox_id`;
    await this.#database.transact(async (tx) => {
      const renewed = await sql<{ sandbox_id: string; was: string; is: string }>`${saw}
        select identities.sandbox_id, identities.thumbprint as was, saw.thumbprint as "is" from identities, saw
        where ${sameSandbox} and identities.next_thumbprint = saw.thumbprint`.execute(tx.db);
      for (const row of renewed.rows) await promote(tx, row);
      await sql`${saw} update identities set last_seen_at = saw.at from saw
        where ${sameSandbox} and identities.thumbprint = saw.thumbprint and identities.last_seen_at < saw.at`.execute(tx.db);
    });
  }
}

/** Makes the next certificate the registered one, because the sandbox has presented it (I-6). */
async function promote(tx: Tx, row: { readonly sandbox_id: string; readonly was: string; readonly is: string }): Promise<void> {
  const promoted = await tx.db
    .updateTable('identities')
    .set({ thumbprint: row.is, next_thumbprint: null })
    .where('sandbox_id', '=', row.sandbox_id)
    .where('next_thumbprint', '=', row.is)
    .executeTakeFirst();
  if (promoted.numUpdatedRows !== 1n) return;
  // The tokens of the replaced certificate stay valid for its successor.
  await tx.db
    .updateTable('sandbox_tokens')
    .set({ thumbprint: row.is })
    .where('sandbox_id', '=', row.sandbox_id)
    .where('thumbprint', '=', row.was)
    .execute();
  await dropCertificate(tx, row.was);
}
