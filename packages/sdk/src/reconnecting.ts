import { DroverError } from '@drover/foundation';
import type { Calls } from './calls.ts';
import { streamWaitMs } from './limits.ts';
import { Retry } from './retry.ts';

export interface ReconnectOptions {
  /** The stream has no end of its own: one is a broken connection. False takes what there is once, and tries nothing again. */
  readonly follow: boolean;
  readonly onReconnect: ((error: Error) => void) | undefined;
  readonly signal: AbortSignal | undefined;
}

/**
 * The messages of a stream that is opened again whenever it breaks. `open` is called after the last message was dealt with, so that
 * it can ask for what comes behind that.
 * @throws {DroverError} the connection's error when `streamWaitMs` passed without an answer
 */
export async function* reconnecting<T>(
  calls: Calls,
  open: () => AsyncIterable<T>,
  { follow, onReconnect, signal }: ReconnectOptions,
): AsyncGenerator<T, void, undefined> {
  const retry = new Retry(calls.clock, { controlPlaneMs: streamWaitMs });
  for (;;) {
    try {
      for await (const message of open()) {
        retry.succeeded();
        yield message;
      }
      if (!follow) return;
      throw new DroverError('control-plane-unreachable', `${calls.server} ended the watch`);
    } catch (thrown) {
      const error = calls.error(thrown);
      if (!follow) throw error;
      await retry.pause(error, signal, onReconnect);
    }
  }
}
