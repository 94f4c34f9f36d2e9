import { createHash } from 'node:crypto';
import { clip, DroverError } from '@drover/foundation';
import * as limits from '../limits.ts';
import type { Database } from './database.ts';
import type { IdempotencyStore } from './store.ts';

interface Claim {
  readonly key: string;
  readonly method: string;
  readonly hash: string;
}

/**
 * L-20. The first call claims its key with a row, which it renews while it runs; its answer is written into the row. Another call
 * with the key waits for that, also on another replica. After a crash the claim runs out and the next call takes it over.
 */
export class SqlIdempotencyStore implements IdempotencyStore {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  async once(key: string, method: string, request: Uint8Array, action: () => Promise<Uint8Array>): Promise<Uint8Array> {
    if (key === '') return await action();
    const claim: Claim = { key, method, hash: createHash('sha256').update(request).digest('hex') };
    const { clock } = this.#database;
    const giveUpAt = clock.now() + limits.idempotencyWaitMs;
    for (;;) {
      const answer = await this.#claim(claim);
      if (answer === 'claimed') return await this.#run(claim, action);
      if (answer !== 'running') return answer;
      if (clock.now() >= giveUpAt) {
        throw new DroverError('conflict', 'the first call with this idempotency key is still running', { hint: 'try again in a moment' });
      }
      await clock.sleep(limits.idempotencyPollMs);
    }
  }

  async trim(olderThan: number): Promise<number> {
    const result = await this.#database.db
      .deleteFrom('idempotency')
      .where('created_at', '<', olderThan)
      .where('claimed_until', '<', this.#database.clock.now())
      .executeTakeFirst();
    return Number(result.numDeletedRows);
  }

  async #claim(claim: Claim): Promise<'claimed' | 'running' | Uint8Array> {
    return await this.#database.transact(async (tx) => {
      const claimedUntil = tx.now + limits.idempotencyClaimMs;
      const row = { key: claim.key, method: claim.method, request_hash: claim.hash, owner: this.#database.replica };
      const inserted = await tx.db
        .insertInto('idempotency')
        .values({ ...row, claimed_until: claimedUntil, response: null, created_at: tx.now })
        .onConflict((conflict) => conflict.column('key').doNothing())
        .returning('key')
        .executeTakeFirst();
      if (inserted !== undefined) return 'claimed';
      const found = await tx.db.selectFrom('idempotency').selectAll().where('key', '=', claim.key).executeTakeFirst();
      // Failed and taken away between the two statements: the next turn claims it.
      if (found === undefined) return 'running';
      if (found.method !== claim.method || found.request_hash !== claim.hash) {
        throw new DroverError(
          'idempotency-key-reused',
          `the idempotency key ${JSON.stringify(clip(claim.key))} was used for another request`,
          {
            hint: 'use a new key for each new request',
          },
        );
      }
      if (found.response !== null) return new Uint8Array(Buffer.from(found.response, 'base64'));
      const taken = await tx.db
        .updateTable('idempotency')
        .set({ claimed_until: claimedUntil, owner: this.#database.replica })
        .where('key', '=', claim.key)
        .where('response', 'is', null)
        .where('claimed_until', '<', tx.now)
        .returning('key')
        .executeTakeFirst();
      return taken === undefined ? 'running' : 'claimed';
    });
  }

  async #run(claim: Claim, action: () => Promise<Uint8Array>): Promise<Uint8Array> {
    const finished = new AbortController();
    const renewing = this.#renew(claim, finished.signal);
    try {
      const answer = await action();
      await this.#database.db
        .updateTable('idempotency')
        .set({ response: Buffer.from(answer).toString('base64') })
        .where('key', '=', claim.key)
        .execute();
      return answer;
    } catch (error) {
      // Failures are not kept: the next call with this key is a new try.
      await this.#database.db.deleteFrom('idempotency').where('key', '=', claim.key).where('response', 'is', null).execute();
      throw error;
    } finally {
      finished.abort();
      await renewing;
    }
  }

  async #renew(claim: Claim, signal: AbortSignal): Promise<void> {
    const { clock, db, logger } = this.#database;
    for (;;) {
      try {
        await clock.sleep(limits.idempotencyClaimMs / 3, signal);
        await db
          .updateTable('idempotency')
          .set({ claimed_until: clock.now() + limits.idempotencyClaimMs })
          .where('key', '=', claim.key)
          .execute();
      } catch (error) {
        if (signal.aborted) return;
        logger.warn({ err: error, method: claim.method }, 'the claim of an idempotency key could not be renewed');
      }
    }
  }
}
