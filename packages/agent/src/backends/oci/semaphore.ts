/** A fixed number of permits; waiters receive them in the order in which they came. */
export class Semaphore {
  readonly #permits: number;
  readonly #waiters = new Set<() => void>();
  #acquired = 0;

  constructor(permits: number) {
    this.#permits = permits;
  }

  /** Returns what releases the permit; called again, it does nothing. @throws the signal's reason when it aborts before a permit is free */
  async acquire(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#acquired < this.#permits) this.#acquired++;
    else await this.#wait(signal);
    let isReleased = false;
    return () => {
      if (isReleased) return;
      isReleased = true;
      const [next] = this.#waiters;
      // The permit passes to the next waiter directly, so that no newcomer overtakes it.
      if (next === undefined) this.#acquired--;
      else next();
    };
  }

  async #wait(signal: AbortSignal): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const abort = (): void => reject(signal.reason as Error);
    this.#waiters.add(resolve);
    signal.addEventListener('abort', abort, { once: true });
    try {
      await promise;
    } finally {
      this.#waiters.delete(resolve);
      signal.removeEventListener('abort', abort);
    }
  }
}
