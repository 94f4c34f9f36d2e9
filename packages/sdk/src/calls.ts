import { Backoff, newId, systemClock, type Clock } from '@drover/foundation';
import { fromApiError, Reach } from './errors.ts';
import { callTries, retryBaseMs, retryCapMs, watchReconnectMs } from './limits.ts';

/** How this client calls: errors converted once, calls repeated when their answer was lost (L-20). */
export class Calls {
  readonly server: string;
  readonly clock: Clock;

  constructor(server: string, clock: Clock = systemClock) {
    this.server = server;
    this.clock = clock;
  }

  error(thrown: unknown): Error {
    return fromApiError(thrown, this.server);
  }

  /** A call that may be repeated as it is. */
  async ask<T>(call: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    const backoff = new Backoff({ baseMs: retryBaseMs, capMs: retryCapMs });
    const reach = new Reach();
    for (let attempt = 1; ; attempt++) {
      try {
        return await call();
      } catch (thrown) {
        const error = fromApiError(thrown, this.server);
        if (attempt >= callTries || !reach.mayTryAgain(error) || signal?.aborted === true) throw error;
        await this.clock.sleep(backoff.nextMs(), signal);
      }
    }
  }

  /**
   * A call that waits, for hours perhaps, and may be repeated: it outlives any number of broken connections, each of which is given
   * `watchReconnectMs`. `call` is told how long the whole has taken so far.
   */
  async wait<T>(call: (passedMs: number) => Promise<T>, signal?: AbortSignal): Promise<T> {
    const backoff = new Backoff({ baseMs: retryBaseMs, capMs: retryCapMs });
    const reach = new Reach();
    const start = this.clock.now();
    let brokenSince: number | undefined;
    for (;;) {
      const began = this.clock.now();
      try {
        return await call(began - start);
      } catch (thrown) {
        const error = fromApiError(thrown, this.server);
        if (signal?.aborted === true || !reach.mayTryAgain(error)) throw error;
        // One that lasted had been taken up.
        if (this.clock.now() - began > retryCapMs) {
          brokenSince = undefined;
          backoff.reset();
        }
        brokenSince ??= this.clock.now();
        if (this.clock.now() - brokenSince > watchReconnectMs) throw error;
        await this.clock.sleep(backoff.nextMs(), signal);
      }
    }
  }

  /** A call that changes something: repeated with one key, the caller's own if it has one. */
  async mutate<T>(call: (idempotencyKey: string) => Promise<T>, signal: AbortSignal | undefined, key = newId('key')): Promise<T> {
    return await this.ask(async () => await call(key), signal);
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
