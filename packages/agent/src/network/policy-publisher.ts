import type { SandboxPolicy } from '@drover/gateway';

/** Puts a whole table of policies in force; resolves when it is. */
export type ApplyGateway = (policies: readonly SandboxPolicy[]) => Promise<void>;

/**
 * Publishes the table of policies, one publication at a time. Changes during a publication are combined in the next: fifty concurrent creates are a
 * few publications.
 */
export class PolicyPublisher {
  readonly #apply: ApplyGateway;
  readonly #current: () => readonly SandboxPolicy[];
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  /** @param current the current table */
  constructor(apply: ApplyGateway, current: () => readonly SandboxPolicy[]) {
    this.#apply = apply;
    this.#current = current;
  }

  /** Resolves when a table that was read after this call is in force. Rejects when that publication fails. */
  async publish(): Promise<void> {
    if (this.#next !== undefined) {
      await this.#next;
      return;
    }
    if (this.#running === undefined) {
      this.#running = this.#run();
      await this.#running;
      return;
    }
    this.#next = this.#running
      // The callers of the earlier publication receive its error.
      .catch(() => undefined)
      .then(async () => {
        this.#next = undefined;
        this.#running = this.#run();
        await this.#running;
      });
    await this.#next;
  }

  async #run(): Promise<void> {
    try {
      await this.#apply(this.#current());
    } finally {
      this.#running = undefined;
    }
  }
}
