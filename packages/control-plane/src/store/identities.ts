import { sql } from 'kysely';
import { DroverError, type SandboxId } from '@drover/foundation';
import type { Bearer, EvictionCause, Identity, TokenScope } from '../model/index.ts';
import * as limits from '../limits.ts';
import { changeSandbox, lockSandboxes } from './change.ts';
import { isUniqueViolation, type Database, type Tx, type StoredIdentity, type StoredSandbox } from '../database/index.ts';
import type { Registration, RegistrationResult } from './drafts.ts';
import { evictIdentity } from './evict.ts';
import { dropBareTokens, dropCertificate, hasOwnToken, identityOf, identityRow, takenElsewhere } from './identity-rows.ts';
import { registerIdentity } from './register-identity.ts';

/**
 * The registry's rows (I-7). Whatever adds to them holds the sandbox's row locked, as its deletion does: a deleted sandbox has nothing
 * here (I-11).
 */
export class IdentityStore {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /**
   * Stores a certificate that was signed for a start of the sandbox, and its token's hash. All certificates of one start have the hash of the
   * same signing request. Beyond `certificatesPerSandbox`, the oldest are dropped with their tokens.
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
      if ((await this.#lockKept(tx, sandboxId)) === undefined) {
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
      await dropBareTokens(tx, sandboxId);
    });
  }

  /**
   * Stores the hash of another token for a certificate whose own is spent or expired; it replaces an earlier one. False when the certificate
   * is unknown, or the sandbox revoked or registered.
   */
  async issueAgain(token: {
    readonly hash: string;
    readonly sandboxId: SandboxId;
    readonly thumbprint: string;
    readonly expiresAt: number;
  }): Promise<boolean> {
    return await this.#database.transact(async (tx) => {
      const { hash, sandboxId, thumbprint, expiresAt } = token;
      const row = await this.#lockKept(tx, sandboxId);
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
   * The last part of Register, in one transaction (I-15, I-17): checks and consumes the token, writes or finds the row, stores the access
   * token's hash, and emits AgentRegistered for a new row. A row with another thumbprint is replaced only by a certificate that was issued
   * after it, with its own unspent token.
   */
  async register(registration: Registration): Promise<RegistrationResult> {
    try {
      return await this.#database.transact(async (tx) => {
        const sandbox = await this.#lockKept(tx, registration.sandboxId);
        if (sandbox === undefined || sandbox.desired === 'deleted') return { kind: 'refused', why: 'unknown-sandbox' };
        if (sandbox.revoked_at !== null) return { kind: 'refused', why: 'revoked' };
        return await registerIdentity(tx, sandbox, registration);
      });
    } catch (error) {
      // Another sandbox registered the same certificate between the look and the insert.
      if (isUniqueViolation(error)) return { kind: 'refused', why: 'collision' };
      throw error;
    }
  }

  /** By the present or the next thumbprint. */
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

  /** The rows of these sandboxes, in few queries. */
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

  /** The sandbox of a token; undefined when it is unknown or expired. A consumed bootstrap token is still known (I-15). */
  async bearer(hash: string): Promise<(Bearer & { readonly thumbprint: string }) | undefined> {
    const token = await this.#database.db.selectFrom('sandbox_tokens').selectAll().where('hash', '=', hash).executeTakeFirst();
    if (token === undefined || (token.expires_at !== null && token.expires_at <= this.#database.clock.now())) return undefined;
    const scope: TokenScope = token.scope === 'control' ? 'control' : 'register';
    return { sandboxId: token.sandbox_id as SandboxId, scope, thumbprint: token.thumbprint };
  }

  /** Whether the token that was issued with this certificate is unspent. A token of `issueAgain` does not count. */
  async mayRegister(id: SandboxId, thumbprint: string): Promise<boolean> {
    return await hasOwnToken({ db: this.#database.db, now: this.#database.clock.now() }, id, thumbprint);
  }

  /**
   * Stores the certificate that replaces the registered one when it is seen; emits IdentityRenewed. False: no row, or a thumbprint of another
   * sandbox.
   * @param shown the certificate that the sandbox shows now; if it is the next one, it counts as seen
   */
  async setNext(id: SandboxId, thumbprint: string, expiresAt: number, shown = ''): Promise<boolean> {
    try {
      return await this.#database.transact(async (tx) => {
        if ((await this.#lockKept(tx, id)) === undefined) return false;
        const row = await identityOf(tx, id);
        if (row === undefined || (await takenElsewhere(tx, id, thumbprint))) return false;
        // Said before, and perhaps not heard.
        if (row.thumbprint === thumbprint || row.next_thumbprint === thumbprint) return true;
        if (row.next_thumbprint === shown) await promote(tx, { sandbox_id: id, was: row.thumbprint, is: shown });
        // One that was made before and never seen is not coming any more.
        else if (row.next_thumbprint !== null) await dropCertificate(tx, row.next_thumbprint);
        await tx.db.updateTable('identities').set({ next_thumbprint: thumbprint }).where('sandbox_id', '=', id).execute();
        // Of the same issue: it takes the place of the one that it renews.
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

  /** Refreshes last seen; a next thumbprint that was seen becomes the thumbprint. */
  async seen(batch: readonly { readonly sandboxId: SandboxId; readonly thumbprint: string; readonly at: number }[]): Promise<void> {
    for (let i = 0; i < batch.length; i += limits.rowsPerStatement) await this.#seen(batch.slice(i, i + limits.rowsPerStatement));
  }

  /** Sorted by project and name. */
  async list(): Promise<readonly Identity[]> {
    const rows = await this.#database.db.selectFrom('identities').selectAll().execute();
    // Compared here: PostgreSQL would sort by its locale. Names are ASCII.
    const key = (row: StoredIdentity): string => `${row.project}\0${row.name}\0${row.sandbox_id}`;
    return rows
      .map((row) => ({ row, key: key(row) }))
      .sort((a, b) => (a.key < b.key ? -1 : 1))
      .map(({ row }) => identityRow(row));
  }

  /** Removes row and tokens, and emits IdentityEvicted; undefined when there was no row. */
  async evict(id: SandboxId, why: EvictionCause): Promise<Identity | undefined> {
    return await this.#database.transact(async (tx) => {
      await lockSandboxes(this.#database, tx, { ids: [id] });
      const row = await evictIdentity(tx, id, why);
      return row === undefined ? undefined : identityRow(row);
    });
  }

  /** Revokes and evicts, or lifts that (I-4); emits IdentityRevoked or IdentityReinstated. False: nothing changed. */
  async setRevoked(id: SandboxId, revoked: boolean): Promise<boolean> {
    return await this.#database.transact(async (tx) => {
      const row = await this.#lockKept(tx, id);
      if (row === undefined || (row.revoked_at !== null) === revoked) return false;
      // The reservation does not move, so the host need not be locked.
      // A new generation: its host closes the registration port to it, or opens it.
      await changeSandbox(tx, row, { revoked_at: revoked ? tx.now : null, generation: row.generation + 1 });
      const evicted = revoked ? await evictIdentity(tx, id, 'revoked') : undefined;
      const data = evicted === undefined ? {} : { thumbprint: evicted.thumbprint };
      tx.emit({ kind: 'identity', type: revoked ? 'IdentityRevoked' : 'IdentityReinstated', subject: id, data });
      return true;
    });
  }

  /** Sandboxes that have a row here and are deleted or unknown in the store (I-12); `listPageMax` at most. */
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

  /** Drops tokens and certificates that expired before. @returns how many tokens */
  async trimTokens(expiredBefore: number): Promise<number> {
    return await this.#database.transact(async (tx) => {
      const tokens = await tx.db.deleteFrom('sandbox_tokens').where('expires_at', '<', expiredBefore).executeTakeFirst();
      await tx.db.deleteFrom('sandbox_certificates').where('expires_at', '<', expiredBefore).execute();
      return Number(tokens.numDeletedRows);
    });
  }

  /** The sandbox's row, locked; undefined when there is none that still stands. */
  async #lockKept(tx: Tx, id: SandboxId): Promise<StoredSandbox | undefined> {
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

/** The next certificate was seen: it is the certificate now (I-6). */
async function promote(tx: Tx, row: { readonly sandbox_id: string; readonly was: string; readonly is: string }): Promise<void> {
  const promoted = await tx.db
    .updateTable('identities')
    .set({ thumbprint: row.is, next_thumbprint: null })
    .where('sandbox_id', '=', row.sandbox_id)
    .where('next_thumbprint', '=', row.is)
    .executeTakeFirst();
  if (promoted.numUpdatedRows !== 1n) return;
  // The tokens of the one that it renews go on, for the same sandbox.
  await tx.db
    .updateTable('sandbox_tokens')
    .set({ thumbprint: row.is })
    .where('sandbox_id', '=', row.sandbox_id)
    .where('thumbprint', '=', row.was)
    .execute();
  await dropCertificate(tx, row.was);
}
