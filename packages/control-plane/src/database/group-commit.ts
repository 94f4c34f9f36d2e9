import { AsyncResource } from 'node:async_hooks';
import { DroverError } from '@drover/foundation';
import { CompiledQuery, type Kysely, type Transaction } from 'kysely';
import * as limits from '../limits.ts';
import type { Schema } from './schema.ts';

type Work<T> = (db: Transaction<Schema>) => Promise<T>;

interface Job {
  run(db: Transaction<Schema>): Promise<void>;
  /** Settles the caller's promise with the outcome of `run`. */
  committed(): void;
  failed(error: unknown): void;
}

/**
 * Runs the transactions of a database with a single writer. A commit waits for the disk, so transactions that arrive in one turn of the
 * event loop, or during a commit, share the next commit. Each is a savepoint: a transaction that fails rolls back only its own changes.
 */
export class GroupCommit {
  readonly #db: Kysely<Schema>;
  readonly #waiting: Job[] = [];
  #running = false;

  constructor(db: Kysely<Schema>) {
    this.#db = db;
  }

  /** @returns the result of `work` once it is committed @throws the error of `work`, or of the commit */
  async run<T>(work: Work<T>): Promise<T> {
    if (this.#waiting.length >= limits.waitingTransactions) {
      throw new DroverError('queue-full', 'too many transactions wait for the disk of the control plane', { hint: 'try again later' });
    }
    const result = Promise.withResolvers<T>();
    const inContext = AsyncResource.bind(work);
    let settle = (): void => undefined;
    this.#waiting.push({
      run: async (db) => {
        const value = await inContext(db);
        settle = () => result.resolve(value);
      },
      committed: () => settle(),
      failed: result.reject,
    });
    if (!this.#running) {
      this.#running = true;
      setImmediate(() => void this.#runAll());
    }
    return await result.promise;
  }

  async #runAll(): Promise<void> {
    while (this.#waiting.length > 0) {
      await this.#runGroup(this.#waiting.splice(0, limits.transactionsPerCommit));
      // Lets the work of other callers arrive.
      await new Promise((resolve) => void setImmediate(resolve));
    }
    this.#running = false;
  }

  async #runGroup(group: readonly Job[]): Promise<void> {
    const done: Job[] = [];
    try {
      await this.#db.transaction().execute(async (db) => {
        for (const job of group) {
          // A single transaction needs no savepoint.
          if (group.length === 1) await job.run(db);
          else if (!(await ranWithin(db, job))) continue;
          done.push(job);
        }
      });
    } catch (error) {
      for (const job of group) job.failed(error);
      return;
    }
    for (const job of done) job.committed();
  }
}

/** Runs a job in a savepoint. @returns false if the job failed and was rolled back */
async function ranWithin(db: Transaction<Schema>, job: Job): Promise<boolean> {
  await db.executeQuery(CompiledQuery.raw('savepoint work'));
  try {
    await job.run(db);
    await db.executeQuery(CompiledQuery.raw('release work'));
    return true;
  } catch (error) {
    try {
      await db.executeQuery(CompiledQuery.raw('rollback to work'));
      await db.executeQuery(CompiledQuery.raw('release work'));
    } catch {
      // SQLite has rolled back the whole transaction, as it does when the disk is full. The whole group fails with that error.
      throw error;
    }
    job.failed(error);
    return false;
  }
}
