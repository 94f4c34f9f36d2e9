/** How fast hosts are let in after a restart (L-12). */
export interface RampOptions {
  readonly perSecond: number;
  readonly burst: number;
  /** The longest delay that is told. Milliseconds. */
  readonly maxDelayMs: number;
}

/**
 * A token bucket that gives turns: who finds it empty is told when to come back, and that turn is kept free.
 * So N hosts at once come back evenly over N / perSecond seconds, each refused once.
 */
export class AcceptRamp {
  readonly #options: RampOptions;
  /** When the bucket was last counted. Milliseconds. */
  #at: number;
  #tokens: number;
  /** The next turn to be given to a host that was refused. */
  #nextTurn = 0;

  constructor(options: RampOptions, now: number) {
    this.#options = options;
    this.#at = now;
    this.#tokens = options.burst;
  }

  /** 0: come in. Otherwise in how many milliseconds to come again. */
  admit(now: number): number {
    const { perSecond, burst, maxDelayMs } = this.#options;
    this.#tokens = Math.min(burst, this.#tokens + ((now - this.#at) * perSecond) / 1000);
    this.#at = now;
    if (this.#tokens >= 1) {
      this.#tokens--;
      return 0;
    }
    this.#nextTurn = Math.max(this.#nextTurn, now) + 1000 / perSecond;
    const delay = Math.min(this.#nextTurn - now, maxDelayMs);
    this.#nextTurn = now + delay;
    return Math.max(1, Math.ceil(delay));
  }
}
