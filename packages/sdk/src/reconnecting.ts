import { Backoff, DroverError } from '@drover/foundation';
import type { Calls } from './calls.ts';
import { fromApiError, Reach } from './errors.ts';
import { retryBaseMs, retryCapMs, watchReconnectMs } from './limits.ts';

export interface ReconnectOptions {
  /** The stream has no end of its own: one is a broken connection. False takes what there is once, and tries nothing again. */
  readonly follow: boolean;
  readonly onReconnect: ((error: Error) => void) | undefined;
  readonly signal: AbortSignal | undefined;
}

/**
 * The messages of a stream that is opened again whenever it breaks. `open` is called after the last message was dealt with, so that
 * it can ask for what comes behind that.
 * @throws {DroverError} the connection's error when `watchReconnectMs` passed without an answer
 */
export async function* reconnecting<T>(
  calls: Calls,
  open: () => AsyncIterable<T>,
  { follow, onReconnect, signal }: ReconnectOptions,
): AsyncGenerator<T, void, undefined> {
  const backoff = new Backoff({ baseMs: retryBaseMs, capMs: retryCapMs });
  const reach = new Reach();
  let brokenSince: number | undefined;
  for (;;) {
    try {
      for await (const message of open()) {
        brokenSince = undefined;
        backoff.reset();
        yield message;
      }
      if (!follow) return;
      throw new DroverError('control-plane-unreachable', `${calls.server} ended the watch`);
    } catch (thrown) {
      const error = fromApiError(thrown, calls.server);
      if (signal?.aborted === true || !follow || !reach.mayTryAgain(error)) throw error;
      brokenSince ??= calls.clock.now();
      if (calls.clock.now() - brokenSince > watchReconnectMs) throw error;
      onReconnect?.(error);
      await calls.clock.sleep(backoff.nextMs(), signal);
    }
  }
}
