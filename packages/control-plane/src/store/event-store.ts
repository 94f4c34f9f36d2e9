import type { EventDraft, StoredEvent } from '../events/index.ts';
import * as limits from '../limits.ts';
import { type Database, prepared } from '../database/index.ts';

type EventFilter = NonNullable<{ readonly kinds?: readonly string[]; readonly subject?: string }>;

interface PageOptions {
  readonly after: number;
  readonly limit: number;
}

const page = prepared((db, { after, limit }: PageOptions) =>
  db.selectFrom('events').selectAll().where('id', '>', after).orderBy('id').limit(limit),
);
const counter = prepared((db) => db.selectFrom('event_counter').select('last').where('id', '=', 1));

export class EventStore {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  async append(events: readonly EventDraft[]): Promise<void> {
    if (events.length === 0) return;
    // oxlint-disable-next-line typescript/require-await -- transact takes an async function; this transaction writes nothing but events
    await this.#database.transact(async (tx) => {
      for (const event of events) tx.emit(event);
    });
  }

  /** Ids rise in commit order: after a reader has seen id n, no smaller id appears. */
  async after(id: number, limit: number, filter: EventFilter = {}): Promise<readonly StoredEvent[]> {
    const options = { after: id, limit: Math.min(limit, limits.listPageMax) };
    const isFiltered = (filter.kinds ?? []).length > 0 || filter.subject !== undefined;
    const { rows } = isFiltered
      ? { rows: await this.#matching(filter).selectAll().where('id', '>', id).orderBy('id').limit(options.limit).execute() }
      : await page(this.#database.db, options);
    return rows.map((row) => ({ ...row, data: JSON.parse(row.data) as Record<string, unknown> }));
  }

  /** The id just before the last `count` matching events; 0 when there are at most `count`. */
  async beforeLast(count: number, filter: EventFilter = {}): Promise<number> {
    const row = await this.#matching(filter)
      .select('id')
      .orderBy('id', 'desc')
      .offset(count - 1)
      .limit(1)
      .executeTakeFirst();
    return row === undefined ? 0 : row.id - 1;
  }

  async lastId(): Promise<number> {
    return (await counter(this.#database.db, {})).rows[0]?.last ?? 0;
  }

  /** Deletes all but the newest `keep` events. @returns the number of deleted events */
  async trim(keep: number): Promise<number> {
    const last = await this.lastId();
    const result = await this.#database.db
      .deleteFrom('events')
      .where('id', '<=', last - keep)
      .executeTakeFirst();
    return Number(result.numDeletedRows);
  }

  /** Calls `listener` after each commit that wrote events, in this process or (PostgreSQL) another. The call carries no data. */
  onAppend(listener: () => void): () => void {
    return this.#database.onAppend(listener);
  }

  #matching({ kinds = [], subject }: EventFilter) {
    let query = this.#database.db.selectFrom('events');
    if (kinds.length > 0) query = query.where('kind', 'in', kinds);
    if (subject !== undefined) query = query.where('subject', '=', subject);
    return query;
  }
}
