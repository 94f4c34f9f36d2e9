import type { SandboxPolicy } from '@drover/gateway';

/** Puts a whole table of policies in force; resolves when it is. */
export type ApplyGateway = (policies: readonly SandboxPolicy[]) => Promise<void>;

/**
 * Publishes the table of policies, one apply at a time. Changes that come while one is under way go together in the next:
 * fifty creates at once are a few applies, not fifty.
 */
export class PolicyPublisher {
  readonly #apply: ApplyGateway;
  readonly #current: () => readonly SandboxPolicy[];
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  /** @param current the table as it should be now */
  constructor(apply: ApplyGateway, current: () => readonly SandboxPolicy[]) {
    this.#apply = apply;
    this.#current = current;
  }

  /** Resolves when a table taken after this call is in force; rejects when that apply failed. */
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
      // How the apply before this one went is its own callers' business.
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
