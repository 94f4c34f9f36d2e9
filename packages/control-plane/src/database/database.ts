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

/** One transaction: its queries, and the events that it will have caused. */
export interface Tx {
  readonly db: Transaction<Schema>;
  readonly now: number;
  emit(event: EventDraft): void;
}

/** What the tables work on: the database, or one transaction of it. */
export interface Database {
  readonly kind: 'sqlite' | 'postgres';
  readonly db: Kysely<Schema>;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Runs `work` as one transaction, or as a part of the one that this is; see `OpenDatabase.transact`. */
  transact<T>(work: (tx: Tx) => Promise<T>): Promise<T>;
  onAppend(listener: () => void): () => void;
}

const count = prepared((db, { more }: { readonly more: number }) =>
  db
    .updateTable('event_counter')
    .set((eb) => ({ last: eb('last', '+', more) }))
    .where('id', '=', 1)
    .returning('last'),
);

const insertEvent = prepared((db, row: EventTable) => db.insertInto('events').values(row));

/** Where the data is, and how a transaction is made. */
export class OpenDatabase implements Database {
  readonly kind: 'sqlite' | 'postgres';
  readonly clock: Clock;
  readonly logger: Logger;
  readonly #db: Kysely<Schema>;
  /** SQLite has a single writer. */
  readonly #commits: GroupCommit | undefined;
  /** Set in what runs within `together`. */
  readonly #together = new AsyncLocalStorage<true>();
  readonly #listeners = new Set<() => void>();
  #waking: NodeJS.Immediate | undefined;
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
        : new PostgresListener({ url: options.location, clock: options.clock, logger: options.logger, wake: () => this.#woken() });
  }

  /** What `work` of `together` asks of the store instead of its tables would wait for the transaction that waits for it. */
  get db(): Kysely<Schema> {
    if (this.#together.getStore() !== true) return this.#db;
    throw new DroverError('internal', 'a transaction calls the store instead of the tables that it was given');
  }

  /**
   * Runs `work` as one transaction and writes its events with it; listeners are called in a turn after the commit.
   *
   * Locks are taken in one order everywhere (a host, then its sandboxes by id, then the event counter), and a transaction that
   * the database gives up for another's sake (deadlock, serialization) is run again, at most `transactionAttempts` times:
   * `work` must do nothing but query.
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
        if (events.length > 0) this.#woken();
        return result;
      } catch (error) {
        if (attempt >= limits.transactionAttempts || !mayBeRepeated(error)) throw error;
      }
    }
  }

  async #commit<T>(work: (db: Transaction<Schema>) => Promise<T>): Promise<T> {
    const { db } = this;
    return await (this.#commits?.run(work) ?? db.transaction().execute(work));
  }

  /** Every transaction that `work` makes on the database that it is given is a part of one (L-20). */
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
    clearImmediate(this.#waking);
    await this.#remote?.close();
    await this.#db.destroy();
  }

  /**
   * Ids rise in commit order. They come from one counter row, which is updated as the last thing in the transaction: its row
   * lock is held until the commit, so the next writer gets its ids only when these are visible, and whoever rolls back gives
   * its ids back. (A sequence hands out ids before the commit: a reader could see 8, then 7.) The price is that transactions
   * which write events commit one after another; what they do before that runs in parallel.
   */
  async #write(tx: Tx, events: readonly EventDraft[]): Promise<void> {
    if (events.length === 0) return;
    const [counted] = (await count(tx.db, { more: events.length })).rows;
    if (counted === undefined) throw new DroverError('internal', 'the counter of the events is gone');
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
      // One by one: there is no network in between, and the statement is always the same.
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
   * In the next turn of the event loop, once for all that was committed in this one: what follows from a commit directly (an
   * answer, a command to a host) goes out before those look who only want to know that something changed.
   */
  #woken(): void {
    this.#waking ??= setImmediate(() => {
      this.#waking = undefined;
      this.#tell();
    });
  }

  #tell(): void {
    for (const listener of this.#listeners) {
      try {
        listener();
      } catch (error) {
        // One that throws is isolated (I-36).
        this.logger.error({ err: error }, 'a listener for events threw');
      }
    }
  }
}

const namesOf = (db: Kysely<Schema>, ids: readonly string[]) =>
  db.selectFrom('sandboxes').select(['id', 'project', 'name']).where('id', 'in', ids);
const nameById = prepared((db, { id }: { readonly id: string }) => namesOf(db, [id]));

/** Events of sandboxes carry their sandbox's name, whoever wrote them: a reader need not look ids up, nor can it once they are deleted. */
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
function mayBeRepeated(error: unknown): boolean {
  return error instanceof Error && 'code' in error && (error.code === '40001' || error.code === '40P01');
}

/** Says whether a unique index refused it. */
export function isUniqueViolation(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  if ('code' in error && error.code === '23505') return true;
  // SQLITE_CONSTRAINT_UNIQUE
  return 'errcode' in error && error.errcode === 2067;
}
