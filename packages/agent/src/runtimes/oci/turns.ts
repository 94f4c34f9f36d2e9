/** So many may be at it at the same time; the others wait, first come first served. */
export class Turns {
  readonly #atOnce: number;
  readonly #waiting = new Set<() => void>();
  #taken = 0;

  constructor(atOnce: number) {
    this.#atOnce = atOnce;
  }

  /** @returns what ends the turn; again: nothing. @throws the signal's reason, when it aborts before the turn has come */
  async take(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#taken < this.#atOnce) this.#taken++;
    else await this.#wait(signal);
    let over = false;
    return () => {
      if (over) return;
      over = true;
      const [next] = this.#waiting;
      // The turn goes from hand to hand, so that nobody who comes just now is before those who wait.
      if (next === undefined) this.#taken--;
      else next();
    };
  }

  async #wait(signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const next = (): void => {
        this.#waiting.delete(next);
        signal.removeEventListener('abort', abort);
        resolve();
      };
      const abort = (): void => {
        this.#waiting.delete(next);
        reject(signal.reason as Error);
      };
      this.#waiting.add(next);
      signal.addEventListener('abort', abort, { once: true });
    });
  }
}
