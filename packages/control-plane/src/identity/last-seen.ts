import type { Clock, Logger, SandboxId } from '@drover/foundation';
import { pendingSeen, seenFlushMs } from '../limits.ts';
import type { IdentityStore } from '../store/index.ts';

interface Seen {
  readonly thumbprint: string;
  readonly at: number;
}

/** The sandboxes seen since the last write (I-10): the newest time of each, for a bounded number of sandboxes. */
export class LastSeen {
  readonly #identities: Pick<IdentityStore, 'seen'>;
  readonly #clock: Clock;
  readonly #logger: Logger;
  #waiting = new Map<SandboxId, Seen>();

  constructor(identities: Pick<IdentityStore, 'seen'>, clock: Clock, logger: Logger) {
    this.#identities = identities;
    this.#clock = clock;
    this.#logger = logger;
  }

  note(id: SandboxId, thumbprint: string): void {
    if (this.#waiting.size >= pendingSeen && !this.#waiting.has(id)) return;
    this.#waiting.set(id, { thumbprint, at: this.#clock.now() });
  }

  /** Writes every `seenFlushMs`, and a last time when the signal aborts. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      // Only the signal rejects the sleep, and the loop checks the signal.
      await this.#clock.sleep(seenFlushMs, signal).catch(() => undefined);
      await this.flush();
    }
  }

  /** Never rejects: a failed batch is written with the next one, except for sandboxes that were seen again. */
  async flush(): Promise<void> {
    if (this.#waiting.size === 0) return;
    const batch = this.#waiting;
    this.#waiting = new Map();
    try {
      await this.#identities.seen([...batch].map(([sandboxId, seen]) => ({ sandboxId, ...seen })));
    } catch (error) {
      this.#logger.warn(
        { err: error, sandboxes: batch.size },
        'the times at which sandboxes were last seen could not be written; retrying',
      );
      for (const [id, seen] of batch) if (this.#waiting.size < pendingSeen && !this.#waiting.has(id)) this.#waiting.set(id, seen);
    }
  }
}
