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
 * Takes registrations to the store. SQLite commits one transaction at a time, and nothing else of the process runs while one waits for
 * the disk: the first after a pause is written at once, and those that follow it within `registrationGatherMs` together (L-12).
 * PostgreSQL commits side by side, and has each in its own.
 */
export class Registrations {
  readonly #store: Store;
  readonly #owner: string;
  readonly #logger: Logger;
  #waiting: Waiting[] = [];
  #running = false;
  /** When the last batch was begun. */
  #begunAt = Number.NEGATIVE_INFINITY;

  constructor(store: Store, owner: string, logger: Logger) {
    this.#store = store;
    this.#owner = owner;
    this.#logger = logger;
  }

  /** @throws {DroverError} host-removed, host-not-found; what the store throws */
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
        const answers = await this.#store.together(async (tables) => {
          const given: (() => void)[] = [];
          for (const one of batch) given.push(await this.#one(tables, one));
          return given;
        });
        for (const answer of answers) answer();
      } catch (error) {
        // One of them, or the commit: nobody is to fail for another's sake.
        if (batch.length > 1) this.#logger.warn({ err: error, hosts: batch.length }, 'hosts could not be registered together; one by one');
        for (const { registration, resolve, reject } of batch) {
          await this.#store.hosts.register(registration, this.#owner).then(resolve, reject);
        }
      }
    }
    this.#running = false;
  }

  /** The answer to one, to be given after the commit. A host that is refused is refused before anything is written for it. */
  async #one({ hosts }: Tables, { registration, resolve, reject }: Waiting): Promise<() => void> {
    try {
      const registered = await hosts.register(registration, this.#owner);
      return () => resolve(registered);
    } catch (error) {
      if (hasCode(error, 'host-removed') || hasCode(error, 'host-not-found')) return () => reject(error);
      throw error;
    }
  }
}
