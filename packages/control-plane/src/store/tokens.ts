import type { HostId } from '@drover/foundation';
import { type Database, prepared } from '../database/index.ts';
import { parseMap } from './rows.ts';

const apiToken = prepared((db, { hash }: { readonly hash: string }) => db.selectFrom('api_tokens').select('name').where('hash', '=', hash));

export class TokenStore {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  async createJoin(token: {
    readonly hash: string;
    readonly expiresAt: number;
    readonly uses: number;
    readonly labels: Readonly<Record<string, string>>;
  }): Promise<void> {
    await this.#database.db
      .insertInto('join_tokens')
      .values({ hash: token.hash, expires_at: token.expiresAt, uses_left: token.uses, labels: JSON.stringify(token.labels) })
      .execute();
  }

  /**
   * Consumes one use of a join token; undefined when the token is unknown, used up or expired. A host that repeats the call, after a lost
   * response, consumes nothing more.
   */
  async takeJoin(hash: string, hostId: HostId): Promise<{ readonly labels: Readonly<Record<string, string>> } | undefined> {
    return await this.#database.transact(async (tx) => {
      // Inserting the use locks the pair of token and host: a concurrent repetition waits, finds the row, and consumes nothing.
      const known = await tx.db
        .selectFrom('join_tokens')
        .select('labels')
        .where('hash', '=', hash)
        .where('expires_at', '>', tx.now)
        .executeTakeFirst();
      if (known === undefined) return undefined;
      const labels = parseMap(known.labels);
      const first = await tx.db
        .insertInto('join_token_uses')
        .values({ hash, host_id: hostId })
        .onConflict((conflict) => conflict.doNothing())
        .returning('hash')
        .executeTakeFirst();
      if (first === undefined) return { labels };
      const taken = await tx.db
        .updateTable('join_tokens')
        .set((eb) => ({ uses_left: eb('uses_left', '-', 1) }))
        .where('hash', '=', hash)
        .where('uses_left', '>', 0)
        .returning('hash')
        .executeTakeFirst();
      if (taken !== undefined) return { labels };
      await tx.db.deleteFrom('join_token_uses').where('hash', '=', hash).where('host_id', '=', hostId).execute();
      return undefined;
    });
  }

  /** Deletes join tokens that expired before `expiredBefore`. @returns the number of deleted tokens */
  async trimJoin(expiredBefore: number): Promise<number> {
    return await this.#database.transact(async (tx) => {
      const expired = tx.db.selectFrom('join_tokens').select('hash').where('expires_at', '<', expiredBefore);
      await tx.db.deleteFrom('join_token_uses').where('hash', 'in', expired).execute();
      const result = await tx.db.deleteFrom('join_tokens').where('expires_at', '<', expiredBefore).executeTakeFirst();
      return Number(result.numDeletedRows);
    });
  }

  async createApi(token: { readonly hash: string; readonly name: string }): Promise<void> {
    await this.#database.db
      .insertInto('api_tokens')
      .values({ hash: token.hash, name: token.name, created_at: this.#database.clock.now() })
      .onConflict((conflict) => conflict.column('hash').doUpdateSet({ name: token.name }))
      .execute();
  }

  async findApi(hash: string): Promise<{ readonly name: string } | undefined> {
    return (await apiToken(this.#database.db, { hash })).rows[0];
  }
}
