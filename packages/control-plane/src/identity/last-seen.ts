import type { Clock, Logger, SandboxId } from '@drover/foundation';
import { pendingSeen, seenFlushMs } from '../limits.ts';
import type { IdentityStore } from '../store/index.ts';

interface Seen {
  readonly thumbprint: string;
  readonly at: number;
}

/** Who was seen since the last write (I-10): the newest of each sandbox, of so many sandboxes. */
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
      // Only the signal rejects it, and the loop looks at that.
      await this.#clock.sleep(seenFlushMs, signal).catch(() => undefined);
      await this.flush();
    }
  }

  /** Never rejects: what could not be written waits for the next time, unless it is seen again before. */
  async flush(): Promise<void> {
    if (this.#waiting.size === 0) return;
    const batch = this.#waiting;
    this.#waiting = new Map();
    try {
      await this.#identities.seen([...batch].map(([sandboxId, seen]) => ({ sandboxId, ...seen })));
    } catch (error) {
      this.#logger.warn({ err: error, sandboxes: batch.size }, 'when sandboxes were last seen could not be written; it is tried again');
      for (const [id, seen] of batch) if (this.#waiting.size < pendingSeen && !this.#waiting.has(id)) this.#waiting.set(id, seen);
    }
  }
}
