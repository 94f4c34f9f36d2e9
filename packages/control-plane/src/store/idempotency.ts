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
const storeResponse = prepared((db, { key, response }: { readonly key: string; readonly response: string }) =>
  db.updateTable('idempotency').set({ response }).where('key', '=', key),
);

/**
 * L-20. The key, the changes of the action and its response are one transaction. A crash leaves either all of them, and a repeated call
 * returns the stored response, or none, and a repeated call runs the action. The key is written first, so a concurrent call with the
 * same key waits until the first has ended, on any replica.
 */
export class IdempotencyStore {
  readonly #database: OpenDatabase;

  constructor(database: OpenDatabase) {
    this.#database = database;
  }

  /**
   * Runs `action` once per key (L-20), in one transaction with the key and the response. A repeated or concurrent call returns the stored
   * response. A failure stores nothing.
   * @throws {DroverError} idempotency-key-reused for the same key with another request
   */
  async once(key: string, method: string, request: Uint8Array, action: (store: Tables) => Promise<Uint8Array>): Promise<Uint8Array> {
    const hash = createHash('sha256').update(request).digest('hex');
    return await this.#database.together(async (within) => {
      const row = { key, method, request_hash: hash, response: null, created_at: within.clock.now() };
      // On PostgreSQL, this waits for a concurrent transaction that has written the same key. SQLite has a single writer.
      const inserted = await insertKey(within.db, row);
      if (inserted.rows.length === 0) return await this.#storedResponse(within, key, method, hash);
      const response = await action(tablesOf(within));
      await storeResponse(within.db, { key, response: Buffer.from(response).toString('base64') });
      return response;
    });
  }

  /** Deletes keys older than `olderThan`, and all but the newest `keep`. @returns the number of deleted keys */
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

  async #storedResponse(within: Database, key: string, method: string, hash: string): Promise<Uint8Array> {
    const found = await within.db.selectFrom('idempotency').selectAll().where('key', '=', key).executeTakeFirst();
    if (found === undefined || found.response === null) {
      throw new DroverError('conflict', 'the response to this idempotency key has just expired', { hint: 'use a new key' });
    }
    if (found.method !== method || found.request_hash !== hash) {
      throw new DroverError('idempotency-key-reused', `the idempotency key ${JSON.stringify(clip(key))} was used for another request`, {
        hint: 'use a new key for each new request',
      });
    }
    return new Uint8Array(Buffer.from(found.response, 'base64'));
  }
}
