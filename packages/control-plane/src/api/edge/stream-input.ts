import { abortable, DroverError } from '@drover/foundation';
import { firstMessageTimeoutMs } from '../../limits.ts';

/**
 * The caller's messages, read one at a time and only on demand, which is the backpressure. A message that arrives after its reader has left
 * is for the next reader.
 */
export class StreamInput<T> {
  readonly #iterator: AsyncIterator<T>;
  #pending: Promise<IteratorResult<T>> | undefined;

  constructor(messages: AsyncIterable<T>) {
    this.#iterator = messages[Symbol.asyncIterator]();
  }

  /** The next message; undefined at the end. @throws the signal's reason, leaving the message for the next call */
  async next(signal: AbortSignal): Promise<T | undefined> {
    signal.throwIfAborted();
    this.#pending ??= this.#iterator.next();
    // The stream may break without a reader: the next reader gets the error.
    this.#pending.catch(() => undefined);
    const result = await abortable(this.#pending, signal);
    this.#pending = undefined;
    return result.done === true ? undefined : result.value;
  }

  /** The first message. @throws {DroverError} protocol-violation when it does not arrive in time */
  async first(signal: AbortSignal): Promise<T> {
    const timeout = AbortSignal.timeout(firstMessageTimeoutMs);
    let message: T | undefined;
    try {
      message = await this.next(AbortSignal.any([signal, timeout]));
    } catch (error) {
      if (!timeout.aborted || signal.aborted) throw error;
    }
    if (message === undefined) throw new DroverError('protocol-violation', 'the stream has no first message');
    return message;
  }
}
