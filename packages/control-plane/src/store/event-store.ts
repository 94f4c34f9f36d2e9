import type { EventDraft, StoredEvent } from '../events/event.ts';
import * as limits from '../limits.ts';
import type { Database } from './database.ts';
import { prepared } from './prepared.ts';
import type { EventStore } from './store.ts';

const counter = prepared([], (db) => db.selectFrom('event_counter').select('last').where('id', '=', 1));

export class SqlEventStore implements EventStore {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  async append(events: readonly EventDraft[]): Promise<void> {
    if (events.length === 0) return;
    // oxlint-disable-next-line typescript/require-await -- transact takes a promise; the events are all there is to write
    await this.#database.transact(async (tx) => {
      for (const event of events) tx.emit(event);
    });
  }

  async after(
    id: number,
    limit: number,
    filter: { readonly kinds?: readonly string[]; readonly subject?: string } = {},
  ): Promise<readonly StoredEvent[]> {
    let query = this.#database.db
      .selectFrom('events')
      .selectAll()
      .where('id', '>', id)
      .orderBy('id')
      .limit(Math.min(limit, limits.listPageMax));
    if (filter.kinds !== undefined && filter.kinds.length > 0) query = query.where('kind', 'in', filter.kinds);
    if (filter.subject !== undefined) query = query.where('subject', '=', filter.subject);
    const rows = await query.execute();
    return rows.map((row) => ({ ...row, data: JSON.parse(row.data) as Record<string, unknown> }));
  }

  async lastId(): Promise<number> {
    return (await counter(this.#database.db, {})).rows[0]?.last ?? 0;
  }

  async trim(keep: number): Promise<number> {
    const last = await this.lastId();
    const result = await this.#database.db
      .deleteFrom('events')
      .where('id', '<=', last - keep)
      .executeTakeFirst();
    return Number(result.numDeletedRows);
  }

  onAppend(listener: () => void): () => void {
    return this.#database.onAppend(listener);
  }
}
