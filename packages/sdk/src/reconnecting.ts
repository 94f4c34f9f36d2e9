import { DroverError } from '@drover/foundation';
import type { Calls } from './calls.ts';
import { streamWaitMs } from './limits.ts';
import { Retry } from './retry.ts';

export interface ReconnectOptions {
  /** The stream has no regular end: an end is a broken connection. False: it is read once, without a second attempt. */
  readonly follow: boolean;
  readonly onReconnect: ((error: Error) => void) | undefined;
  readonly signal: AbortSignal | undefined;
}

/**
 * The messages of a stream that is opened again whenever it breaks. `open` is called after the last message was processed, so that it can
 * request what follows that message.
 * @throws {DroverError} the connection's error after `streamWaitMs` without a response
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
