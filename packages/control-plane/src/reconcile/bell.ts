import type { Clock } from '@drover/foundation';

/** Why a wait was cut short. One for all: an error of its own for each wake-up would cost more than what is woken. */
const rang = new Error('the bell was rung');

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
  async wait(ms: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    if (!this.#rung) {
      const over = new AbortController();
      const abort = (): void => over.abort(signal?.reason);
      signal?.addEventListener('abort', abort, { once: true });
      this.#wake = () => over.abort(rang);
      try {
        await this.#clock.sleep(ms, over.signal);
      } catch (error) {
        if (error !== rang) throw error;
      } finally {
        this.#wake = undefined;
        signal?.removeEventListener('abort', abort);
      }
    }
    this.#rung = false;
  }
}
