import type { CallOptions } from '@connectrpc/connect';
import { newId, systemClock, type Clock, type DroverError } from '@drover/foundation';
import { fromApiError } from './errors.ts';
import { callWaitMs, retryCapMs, streamWaitMs } from './limits.ts';
import { Retry } from './retry.ts';

type Call<T> = (options: CallOptions) => Promise<T>;

/** The client's calls: errors are converted in one place, and a call whose response was lost is repeated (L-20). */
export class Calls {
  readonly server: string;
  readonly clock: Clock;
  readonly #onWait: ((error: DroverError) => void) | undefined;

  /** @param onWait called before each wait for the repetition of a call */
  constructor(server: string, clock: Clock = systemClock, onWait?: (error: DroverError) => void) {
    this.server = server;
    this.clock = clock;
    this.#onWait = onWait;
  }

  error(thrown: unknown): DroverError {
    return fromApiError(thrown, this.server);
  }

  /** A call without side effects, which can be repeated. */
  async ask<T>(call: Call<T>, signal?: AbortSignal): Promise<T> {
    return await this.#repeat(call, new Retry(this.clock, { controlPlaneMs: callWaitMs }), signal);
  }

  /**
   * A call that can be repeated and may wait for hours: it outlives any number of broken connections.
   * @param call receives the time since the first try, ms
   */
  async wait<T>(call: (passedMs: number, options: CallOptions) => Promise<T>, signal?: AbortSignal): Promise<T> {
    const retry = new Retry(this.clock, { controlPlaneMs: streamWaitMs });
    const start = this.clock.now();
    for (;;) {
      const began = this.clock.now();
      try {
        return await call(began - start, optionsOf(signal));
      } catch (thrown) {
        // A call that lasted had reached the control plane.
        if (this.clock.now() - began > retryCapMs) retry.succeeded();
        await retry.pause(this.error(thrown), signal, this.#onWait);
      }
    }
  }

  /**
   * A call that changes something: repeated with one idempotency key.
   * @param key the caller's own key
   * @throws {DroverError} control-plane-unreachable; its message says so when the change may have been made
   */
  async mutate<T>(
    call: (idempotencyKey: string, options: CallOptions) => Promise<T>,
    signal?: AbortSignal,
    key = newId('key'),
  ): Promise<T> {
    const retry = new Retry(this.clock, { controlPlaneMs: callWaitMs });
    try {
      return await this.#repeat(async (options) => await call(key, options), retry, signal);
    } catch (error) {
      throw retry.withDoubt(error, 'whether the change was made');
    }
  }

  async #repeat<T>(call: Call<T>, retry: Retry, signal: AbortSignal | undefined): Promise<T> {
    for (;;) {
      try {
        return await call(optionsOf(signal));
      } catch (thrown) {
        await retry.pause(this.error(thrown), signal, this.#onWait);
      }
    }
  }

  /** A call that cannot be repeated: its input is consumed, or a second one would have another effect. */
  async once<T>(call: Call<T>, signal?: AbortSignal): Promise<T> {
    try {
      return await call(optionsOf(signal));
    } catch (thrown) {
      throw this.error(thrown);
    }
  }

  async *stream<T>(open: (options: CallOptions) => AsyncIterable<T>, signal?: AbortSignal): AsyncGenerator<T, void, undefined> {
    try {
      yield* open(optionsOf(signal));
    } catch (thrown) {
      throw this.error(thrown);
    }
  }
}

export function optionsOf(signal: AbortSignal | undefined): CallOptions {
  return signal === undefined ? {} : { signal };
}
