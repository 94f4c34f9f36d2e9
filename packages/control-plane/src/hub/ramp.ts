/** How fast hosts may register after a restart (L-12). */
export interface RampOptions {
  readonly perSecond: number;
  readonly burst: number;
  /** The longest delay of a host. Milliseconds. */
  readonly maxDelayMs: number;
}

/**
 * A token bucket with reservations: if it is empty, a host receives the time of a slot that is reserved for it. N hosts that reconnect at
 * the same time therefore register evenly over N / perSecond seconds, and each is refused once.
 */
export class AcceptRamp {
  readonly #options: RampOptions;
  /** The time of the last refill. Milliseconds. */
  #at: number;
  #tokens: number;
  /** The last reserved slot. */
  #lastSlot = 0;

  constructor(options: RampOptions, now: number) {
    this.#options = options;
    this.#at = now;
    this.#tokens = options.burst;
  }

  /** @returns the milliseconds until the host may register; 0: now */
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
