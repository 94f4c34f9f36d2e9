/** How fast hosts may register after a restart (L-12). */
export interface RampOptions {
  readonly perSecond: number;
  readonly burst: number;
  /** The longest delay that a host is given. Milliseconds. */
  readonly maxDelayMs: number;
}

/**
 * A token bucket with reservations: a host that finds it empty receives the time of a slot, which is kept free for it. So N hosts that
 * reconnect at the same time register evenly over N / perSecond seconds, each refused once.
 */
export class AcceptRamp {
  readonly #options: RampOptions;
  /** When the bucket was last counted. Milliseconds. */
  #at: number;
  #tokens: number;
  /** The last reserved slot. */
  #lastSlot = 0;

  constructor(options: RampOptions, now: number) {
    this.#options = options;
    this.#at = now;
    this.#tokens = options.burst;
  }

  /** @returns after how many milliseconds the host may register; 0: now */
  admit(now: number): number {
    const { perSecond, burst, maxDelayMs } = this.#options;
    this.#tokens = Math.min(burst, this.#tokens + ((now - this.#at) * perSecond) / 1000);
    this.#at = now;
    if (this.#tokens >= 1) {
      this.#tokens--;
      return 0;
    }
    this.#lastSlot = Math.max(this.#lastSlot, now) + 1000 / perSecond;
    const delay = Math.min(this.#lastSlot - now, maxDelayMs);
    this.#lastSlot = now + delay;
    return Math.max(1, Math.ceil(delay));
  }
}
