import { systemClock, type Clock } from './clock.ts';
import { after } from './waiting.ts';

/** A wake-up that is never missed: a notification without a waiter ends the next wait immediately. Several count as one. */
export class Notifier {
  readonly #clock: Pick<Clock, 'sleep'>;
  #notified = false;
  #wake: (() => void) | undefined;

  /** @param clock for waits with a time limit */
  constructor(clock: Pick<Clock, 'sleep'> = systemClock) {
    this.#clock = clock;
  }

  readonly notify = (): void => {
    this.#notified = true;
    this.#wake?.();
  };

  /**
   * Resolves at the next notification, or after `ms`. One waiter at a time.
   * @throws the signal's reason when it aborts first
   */
  async wait(signal?: AbortSignal, ms?: number): Promise<void> {
    signal?.throwIfAborted();
    if (!this.#notified) {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const abort = (): void => reject(signal?.reason as Error);
      this.#wake = resolve;
      signal?.addEventListener('abort', abort, { once: true });
      const stopTimer = ms === undefined ? undefined : after(ms, this.#clock, resolve);
      try {
        await promise;
      } finally {
        // An aborted waiter may end after the next one has begun.
        if (this.#wake === resolve) this.#wake = undefined;
        signal?.removeEventListener('abort', abort);
        stopTimer?.();
      }
    }
    this.#notified = false;
  }
}
