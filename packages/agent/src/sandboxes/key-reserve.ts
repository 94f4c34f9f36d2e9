import type { Clock } from '@drover/foundation';
import { createKeyAndRequest, type KeyAndRequest } from '@drover/pki';
import { keysReady, standbyRestMs } from '../limits.ts';

/** Keys made in advance of the starts that use them (I-6): making one takes more than a millisecond of CPU. */
export class KeyReserve {
  readonly #clock: Clock;
  readonly #signal: AbortSignal;
  readonly #ready: KeyAndRequest[] = [];
  #isRefilling = false;

  /** @param signal ends the refilling */
  constructor(clock: Clock, signal: AbortSignal) {
    this.#clock = clock;
    this.#signal = signal;
  }

  async take(): Promise<KeyAndRequest> {
    if (!this.#isRefilling) void this.#refill();
    return this.#ready.shift() ?? (await createKeyAndRequest());
  }

  /** After a pause: the start under way needs the CPU. Never rejects. */
  async #refill(): Promise<void> {
    this.#isRefilling = true;
    try {
      await this.#clock.sleep(standbyRestMs, this.#signal);
      while (this.#ready.length < keysReady && !this.#signal.aborted) this.#ready.push(await createKeyAndRequest());
    } catch {
      // The agent ends, or the start itself will report the failure.
    } finally {
      this.#isRefilling = false;
    }
  }
}
