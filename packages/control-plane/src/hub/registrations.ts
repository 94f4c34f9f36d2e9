import { setTimeout as sleep } from 'node:timers/promises';
import { hasCode, type Logger } from '@drover/foundation';
import type { link } from '@drover/protocol';
import { registrationBatch, registrationGatherMs } from '../limits.ts';
import type { Store, Tables } from '../store/index.ts';

interface Waiting {
  readonly registration: link.Register;
  readonly resolve: (registered: { readonly epoch: number }) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Stores registrations. SQLite commits one transaction at a time, and a commit blocks the process until the disk responds. The first
 * registration after a pause is therefore written immediately, and those of the next `registrationGatherMs` share a transaction (L-12).
 * PostgreSQL commits concurrently, so each registration has its own transaction.
 */
export class Registrations {
  readonly #store: Store;
  readonly #owner: string;
  readonly #logger: Logger;
  #waiting: Waiting[] = [];
  #running = false;
  /** The start of the last batch. */
  #begunAt = Number.NEGATIVE_INFINITY;

  constructor(store: Store, owner: string, logger: Logger) {
    this.#store = store;
    this.#owner = owner;
    this.#logger = logger;
  }

  /** @throws {DroverError} host-removed, host-not-found; the errors of the store */
  async register(registration: link.Register): Promise<{ readonly epoch: number }> {
    if (this.#store.kind === 'postgres') return await this.#store.hosts.register(registration, this.#owner);
    return await new Promise((resolve, reject) => {
      this.#waiting.push({ registration, resolve, reject });
      if (!this.#running) void this.#run();
    });
  }

  async #run(): Promise<void> {
    this.#running = true;
    while (this.#waiting.length > 0) {
      const early = this.#begunAt + registrationGatherMs - performance.now();
      if (early > 0 && this.#waiting.length < registrationBatch) await sleep(early);
      this.#begunAt = performance.now();
      const batch = this.#waiting.splice(0, registrationBatch);
      try {
        const responses = await this.#store.together(async (tables) => {
          const registered: (() => void)[] = [];
          for (const waiting of batch) registered.push(await this.#registerIn(tables, waiting));
          return registered;
        });
        for (const respond of responses) respond();
      } catch (error) {
        // One registration or the commit failed. Retry each alone, so that one cannot fail the others.
        if (batch.length > 1)
          this.#logger.warn({ err: error, hosts: batch.length }, 'hosts could not be registered in one transaction; retrying one by one');
        for (const { registration, resolve, reject } of batch) {
          await this.#store.hosts.register(registration, this.#owner).then(resolve, reject);
        }
      }
    }
    this.#running = false;
  }

  /** @returns the response, to be sent after the commit. A refusal precedes every write for its host, so it does not spoil the transaction. */
  async #registerIn({ hosts }: Tables, { registration, resolve, reject }: Waiting): Promise<() => void> {
    try {
      const registered = await hosts.register(registration, this.#owner);
      return () => resolve(registered);
    } catch (error) {
      if (hasCode(error, 'host-removed') || hasCode(error, 'host-not-found')) return () => reject(error);
      throw error;
    }
  }
}
