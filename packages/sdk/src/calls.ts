import { newId, systemClock, type Clock, type DroverError } from '@drover/foundation';
import { fromApiError } from './errors.ts';
import { callWaitMs, retryCapMs, streamWaitMs } from './limits.ts';
import { Retry } from './retry.ts';

/** How this client calls: errors converted once, calls repeated when their answer was lost (L-20). */
export class Calls {
  readonly server: string;
  readonly clock: Clock;
  readonly #onWait: ((error: DroverError) => void) | undefined;

  /** @param onWait called each time a call is going to be repeated */
  constructor(server: string, clock: Clock = systemClock, onWait?: (error: DroverError) => void) {
    this.server = server;
    this.clock = clock;
    this.#onWait = onWait;
  }

  error(thrown: unknown): DroverError {
    return fromApiError(thrown, this.server);
  }

  /** A call that may be repeated as it is. */
  async ask<T>(call: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    return await this.#repeat(call, new Retry(this.clock, { controlPlaneMs: callWaitMs }), signal);
  }

  /**
   * A call that waits, for hours perhaps, and may be repeated: it outlives any number of broken connections.
   * @param call takes how long the whole has taken so far, ms
   */
  async wait<T>(call: (passedMs: number) => Promise<T>, signal?: AbortSignal): Promise<T> {
    const retry = new Retry(this.clock, { controlPlaneMs: streamWaitMs });
    const start = this.clock.now();
    for (;;) {
      const began = this.clock.now();
      try {
        return await call(began - start);
      } catch (thrown) {
        // A call that lasted had reached the control plane.
        if (this.clock.now() - began > retryCapMs) retry.succeeded();
        await retry.pause(this.error(thrown), signal, this.#onWait);
      }
    }
  }

  /**
   * A call that changes something: repeated with one key, the caller's own if it has one.
   * @throws {DroverError} control-plane-unreachable, whose sentence says so where a request may have arrived and its answer did not
   */
  async mutate<T>(call: (idempotencyKey: string) => Promise<T>, signal: AbortSignal | undefined, key = newId('key')): Promise<T> {
    const retry = new Retry(this.clock, { controlPlaneMs: callWaitMs });
    try {
      return await this.#repeat(async () => await call(key), retry, signal);
    } catch (error) {
      throw retry.withDoubt(error, 'whether the change was made');
    }
  }

  async #repeat<T>(call: () => Promise<T>, retry: Retry, signal: AbortSignal | undefined): Promise<T> {
    for (;;) {
      try {
        return await call();
      } catch (thrown) {
        await retry.pause(this.error(thrown), signal, this.#onWait);
      }
    }
  }

  /** A call that cannot be repeated, since its input is gone. */
  async single<T>(call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } catch (thrown) {
      throw this.error(thrown);
    }
  }

  async *stream<T>(messages: AsyncIterable<T>): AsyncGenerator<T, void, undefined> {
    try {
      yield* messages;
    } catch (thrown) {
      throw this.error(thrown);
    }
  }
}

/** Call options with the signal, when there is one. */
export function withSignal(signal: AbortSignal | undefined): { readonly signal?: AbortSignal } {
  return signal === undefined ? {} : { signal };
}
