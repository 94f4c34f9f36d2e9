import type { Clock } from '@drover/foundation';

/** A wake-up that is never missed: rung while nobody waits, the next wait ends at once. Ringing twice is ringing once. */
export class Bell {
  readonly #clock: Clock;
  #rung = false;
  #wake: (() => void) | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  ring(): void {
    this.#rung = true;
    this.#wake?.();
  }

  /** Resolves when rung, or after `ms`; rejects with the signal's reason when it aborts. One waiter at a time. */
  async wait(ms: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (!this.#rung) {
      const timer = new AbortController();
      const rung = new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      try {
        await Promise.race([rung, this.#clock.sleep(ms, AbortSignal.any([signal, timer.signal]))]);
      } finally {
        this.#wake = undefined;
        timer.abort();
      }
    }
    this.#rung = false;
  }
}
