import { createHash } from 'node:crypto';
import { clip, DroverError } from '@drover/foundation';
import { type Database, type OpenDatabase, prepared, type IdempotencyTable } from '../database/index.ts';
import { tablesOf, type Tables } from './tables.ts';

const insertKey = prepared((db, row: IdempotencyTable) =>
  db
    .insertInto('idempotency')
    .values(row)
    .onConflict((conflict) => conflict.column('key').doNothing())
    .returning('key'),
);
const keepAnswer = prepared((db, { key, response }: { readonly key: string; readonly response: string }) =>
  db.updateTable('idempotency').set({ response }).where('key', '=', key),
);

/**
 * L-20. The key, what the action changes and its answer are one transaction: whenever the process dies, either all of it is there
 * and a repeated call gets the answer, or nothing is and a repeated call is the first. The key is written first, so that a second
 * call with it waits, on this replica or another, until the first has ended.
 */
export class IdempotencyStore {
  readonly #database: OpenDatabase;

  constructor(database: OpenDatabase) {
    this.#database = database;
  }

  /**
   * Runs `action` once per key (L-20), as `together` does: its changes, the key and the response are one transaction. A repeated or concurrent
   * call returns the stored response. A failure stores nothing.
   * @throws {DroverError} idempotency-key-reused for the same key with another request
   */
  async once(key: string, method: string, request: Uint8Array, action: (store: Tables) => Promise<Uint8Array>): Promise<Uint8Array> {
    const hash = createHash('sha256').update(request).digest('hex');
    return await this.#database.together(async (within) => {
      const row = { key, method, request_hash: hash, response: null, created_at: within.clock.now() };
      // PostgreSQL waits here for another transaction that has written the key; SQLite has one writer at a time anyway.
      const inserted = await insertKey(within.db, row);
      if (inserted.rows.length === 0) return await this.#answer(within, key, method, hash);
      const answer = await action(tablesOf(within));
      await keepAnswer(within.db, { key, response: Buffer.from(answer).toString('base64') });
      return answer;
    });
  }

  /** Drops older keys, and all but the newest `keep`. @returns how many */
  async trim(olderThan: number, keep: number): Promise<number> {
    const { db } = this.#database;
    const old = await db.deleteFrom('idempotency').where('created_at', '<', olderThan).executeTakeFirst();
    const newest = await db
      .selectFrom('idempotency')
      .select('created_at')
      .orderBy('created_at', 'desc')
      .offset(keep)
      .limit(1)
      .executeTakeFirst();
    if (newest === undefined) return Number(old.numDeletedRows);
    const many = await db.deleteFrom('idempotency').where('created_at', '<=', newest.created_at).executeTakeFirst();
    return Number(old.numDeletedRows) + Number(many.numDeletedRows);
  }

  async #answer(within: Database, key: string, method: string, hash: string): Promise<Uint8Array> {
    const found = await within.db.selectFrom('idempotency').selectAll().where('key', '=', key).executeTakeFirst();
    if (found === undefined || found.response === null) {
      throw new DroverError('conflict', 'the answer to this idempotency key was dropped just now', { hint: 'use a new key' });
    }
    if (found.method !== method || found.request_hash !== hash) {
      throw new DroverError('idempotency-key-reused', `the idempotency key ${JSON.stringify(clip(key))} was used for another request`, {
        hint: 'use a new key for each new request',
      });
    }
    return new Uint8Array(Buffer.from(found.response, 'base64'));
  }
}
