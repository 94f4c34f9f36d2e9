import { AsyncLocalStorage } from 'node:async_hooks';
import { Kysely, sql, type Transaction } from 'kysely';
import { DroverError, isSandboxId, type Clock, type Logger } from '@drover/foundation';
import type { EventDraft } from '../events/index.ts';
import * as limits from '../limits.ts';
import { GroupCommit } from './group-commit.ts';
import { eventChannel, PostgresListener, postgresDialect } from './postgres.ts';
import { prepared } from './prepared.ts';
import type { EventTable, Schema } from './schema.ts';
import { sqliteDialect } from './sqlite.ts';

/** One transaction: its queries, and the events that it writes when it commits. */
export interface Tx {
  readonly db: Transaction<Schema>;
  readonly now: number;
  emit(event: EventDraft): void;
}

/** What the tables query: the database, or one transaction of it. */
export interface Database {
  readonly kind: 'sqlite' | 'postgres';
  readonly db: Kysely<Schema>;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Runs `work` as one transaction or, if this is a transaction, as part of it; see `OpenDatabase.transact`. */
  transact<T>(work: (tx: Tx) => Promise<T>): Promise<T>;
  onAppend(listener: () => void): () => void;
}

const advanceCounter = prepared((db, { more }: { readonly more: number }) =>
  db
    .updateTable('event_counter')
    .set((eb) => ({ last: eb('last', '+', more) }))
    .where('id', '=', 1)
    .returning('last'),
);

const insertEvent = prepared((db, row: EventTable) => db.insertInto('events').values(row));

/** An open database, with its transactions and the notifications of its commits. */
export class OpenDatabase implements Database {
  readonly kind: 'sqlite' | 'postgres';
  readonly clock: Clock;
  readonly logger: Logger;
  readonly #db: Kysely<Schema>;
  /** Undefined on PostgreSQL, which has concurrent writers. */
  readonly #commits: GroupCommit | undefined;
  /** True in the asynchronous context of `together`. */
  readonly #together = new AsyncLocalStorage<true>();
  readonly #listeners = new Set<() => void>();
  #notification: NodeJS.Immediate | undefined;
  readonly #remote: PostgresListener | undefined;

  constructor(options: {
    readonly kind: 'sqlite' | 'postgres';
    /** A path, or a URL. */
    readonly location: string;
    readonly clock: Clock;
    readonly logger: Logger;
  }) {
    this.kind = options.kind;
    this.clock = options.clock;
    this.logger = options.logger;
    const dialect = options.kind === 'sqlite' ? sqliteDialect(options.location) : postgresDialect(options.location, options.logger);
    this.#db = new Kysely<Schema>({ dialect });
    this.#commits = options.kind === 'sqlite' ? new GroupCommit(this.#db) : undefined;
    this.#remote =
      options.kind === 'sqlite'
        ? undefined
        : new PostgresListener({
            url: options.location,
            clock: options.clock,
            logger: options.logger,
            wake: () => this.#scheduleNotification(),
          });
  }

  /** @throws {DroverError} internal, within `together`: a query outside its transaction would wait for the transaction, a deadlock */
  get db(): Kysely<Schema> {
    if (this.#together.getStore() !== true) return this.#db;
    throw new DroverError('internal', 'a transaction calls the store instead of its tables');
  }

  /**
   * Runs `work` as one transaction, which also writes its events. Listeners are called after the commit, in a later turn of the event loop.
   *
   * Every transaction acquires its locks in one order: a host, its sandboxes by id, the event counter. A transaction that the database aborts
   * (deadlock, serialization failure) is retried; `work` runs at most `transactionAttempts` times, so it must do nothing but query.
   */
  async transact<T>(work: (tx: Tx) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      const events: EventDraft[] = [];
      try {
        const result = await this.#commit(async (db) => {
          const tx: Tx = { db, now: this.clock.now(), emit: (event) => void events.push(event) };
          const value = await work(tx);
          await this.#write(tx, await named(tx, events));
          return value;
        });
        if (events.length > 0) this.#scheduleNotification();
        return result;
      } catch (error) {
        if (attempt >= limits.transactionAttempts || !isRetryable(error)) throw error;
      }
    }
  }

  async #commit<T>(work: (db: Transaction<Schema>) => Promise<T>): Promise<T> {
    const { db } = this;
    return await (this.#commits?.run(work) ?? db.transaction().execute(work));
  }

  /** Runs `work` as one transaction: every `transact` on the database that it receives is part of it (L-20). */
  async together<T>(work: (within: Database) => Promise<T>): Promise<T> {
    return await this.transact(async (tx) => {
      const { kind, clock, logger } = this;
      const within: Database = {
        kind,
        clock,
        logger,
        db: tx.db,
        transact: async (part) => await part(tx),
        onAppend: (listener) => this.onAppend(listener),
      };
      return await this.#together.run(true, async () => await work(within));
    });
  }

  onAppend(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  async close(): Promise<void> {
    clearImmediate(this.#notification);
    await this.#remote?.close();
    await this.#db.destroy();
  }

  /**
   * Event ids rise in commit order, without gaps. They come from one counter row, which each transaction updates last. The lock of that row is
   * held until the commit, so the next writer receives its ids only when these are visible, and a rollback returns its ids. (A sequence
   * allocates ids before the commit: a reader could see 8, then 7.) The cost is that transactions with events commit one after another.
   * Their earlier statements still run in parallel.
   */
  async #write(tx: Tx, events: readonly EventDraft[]): Promise<void> {
    if (events.length === 0) return;
    const [counted] = (await advanceCounter(tx.db, { more: events.length })).rows;
    if (counted === undefined) throw new DroverError('internal', 'the row of the event counter is missing');
    const { last } = counted;
    const rows = events.map((event, i) => ({
      id: last - events.length + 1 + i,
      time: tx.now,
      kind: event.kind,
      type: event.type,
      subject: event.subject,
      data: JSON.stringify(event.data),
    }));
    if (this.kind === 'sqlite') {
      // Row by row: there is no network round trip to save, and one prepared statement serves any number of events.
      for (const row of rows) await insertEvent(tx.db, row);
      return;
    }
    for (let i = 0; i < rows.length; i += limits.rowsPerStatement) {
      await tx.db
        .insertInto('events')
        .values(rows.slice(i, i + limits.rowsPerStatement))
        .execute();
    }
    await sql`select pg_notify(${eventChannel}, '')`.execute(tx.db);
  }

  /**
   * Notifies the listeners in the next turn of the event loop, once for all commits of this turn. So the direct consequences of a commit (a
   * response, a command to a host) are sent before the listeners query the database.
   */
  #scheduleNotification(): void {
    this.#notification ??= setImmediate(() => {
      this.#notification = undefined;
      this.#notify();
    });
  }

  #notify(): void {
    for (const listener of this.#listeners) {
      try {
        listener();
      } catch (error) {
        // I-36: a listener that throws does not affect the others.
        this.logger.error({ err: error }, 'an event listener threw');
      }
    }
  }
}

const namesOf = (db: Kysely<Schema>, ids: readonly string[]) =>
  db.selectFrom('sandboxes').select(['id', 'project', 'name']).where('id', 'in', ids);
const nameById = prepared((db, { id }: { readonly id: string }) => namesOf(db, [id]));

/** Adds project and name to the events of sandboxes: a reader cannot look up the id of a deleted sandbox. */
async function named(tx: Tx, events: readonly EventDraft[]): Promise<readonly EventDraft[]> {
  const unnamed = (event: EventDraft): boolean => isSandboxId(event.subject) && event.data['name'] === undefined;
  const ids = [...new Set(events.filter(unnamed).map((event) => event.subject))];
  if (ids.length === 0) return events;
  const names = new Map<string, { readonly project: string; readonly name: string }>();
  for (let i = 0; i < ids.length; i += limits.rowsPerStatement) {
    const batch = ids.slice(i, i + limits.rowsPerStatement);
    const [first = ''] = batch;
    const rows = batch.length === 1 ? (await nameById(tx.db, { id: first })).rows : await namesOf(tx.db, batch).execute();
    for (const { id, project, name } of rows) names.set(id, { project, name });
  }
  return events.map((event) => (unnamed(event) ? { ...event, data: { ...names.get(event.subject), ...event.data } } : event));
}

/** PostgreSQL: serialization_failure, deadlock_detected. */
function isRetryable(error: unknown): boolean {
  return error instanceof Error && 'code' in error && (error.code === '40001' || error.code === '40P01');
}

/** Whether the error is the violation of a unique index. */
export function isUniqueViolation(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  if ('code' in error && error.code === '23505') return true;
  // SQLITE_CONSTRAINT_UNIQUE
  return 'errcode' in error && error.errcode === 2067;
}
