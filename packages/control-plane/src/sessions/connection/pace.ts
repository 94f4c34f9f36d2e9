import { Duplex } from 'node:stream';
import type { Interceptor } from '@connectrpc/connect';
import type { Clock } from '@drover/foundation';

/** Tokens that come back at a steady rate; what is taken beyond them is a debt, to be waited for. */
export class TokenBucket {
  readonly #perSecond: number;
  readonly #burst: number;
  readonly #clock: Pick<Clock, 'now'>;
  #tokens: number;
  #at: number;

  constructor(perSecond: number, burst: number, clock: Pick<Clock, 'now'>) {
    this.#perSecond = perSecond;
    this.#burst = burst;
    this.#clock = clock;
    this.#tokens = burst;
    this.#at = clock.now();
  }

  /** Takes `count` tokens. Returns after how many milliseconds the debt is paid; 0: there is none. */
  take(count: number): number {
    const now = this.#clock.now();
    // A clock that is set back gives no tokens, and takes none.
    const passedMs = Math.max(0, now - this.#at);
    this.#at = now;
    this.#tokens = Math.min(this.#burst, this.#tokens + (passedMs * this.#perSecond) / 1000) - count;
    return this.#tokens >= 0 ? 0 : Math.ceil((-this.#tokens * 1000) / this.#perSecond);
  }
}

/** Reads from `inner` no faster than the bucket has tokens, one a byte. A reader that waits stops the writer at the far end (backpressure). */
export class PacedStream extends Duplex {
  readonly #inner: Duplex;
  #full = false;
  #owing = false;

  constructor(inner: Duplex, bucket: TokenBucket, clock: Pick<Clock, 'sleep'>) {
    super({ allowHalfOpen: true });
    this.#inner = inner;
    const closed = new AbortController();
    this.once('close', () => closed.abort());
    inner.on('data', (chunk: Buffer) => {
      this.#full = !this.push(chunk);
      const debtMs = bucket.take(chunk.length);
      if (debtMs > 0) {
        this.#owing = true;
        clock.sleep(debtMs, closed.signal).then(
          () => {
            this.#owing = false;
            this.#resume();
          },
          // It was closed first.
          () => undefined,
        );
      }
      if (this.#full || this.#owing) inner.pause();
    });
    inner.once('end', () => this.push(null));
    inner.once('error', (error) => this.destroy(error));
    inner.once('close', () => {
      // What came before its end can still be read.
      if (!inner.readableEnded) this.destroy();
    });
  }

  override _read(): void {
    this.#full = false;
    this.#resume();
  }

  override _write(chunk: Buffer, encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#inner.write(chunk, encoding, done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#inner.end(done);
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#inner.destroy();
    done(error);
  }

  #resume(): void {
    if (!this.#full && !this.#owing) this.#inner.resume();
  }
}

/**
 * Takes a token for each message from the peer, over all calls of one connection, and waits for the debt before the next is read.
 * A burst also bounds how long messages that arrived together keep the process from other sessions.
 * @param throttled called once, when there is a debt for the first time
 */
export function paceMessages(bucket: TokenBucket, clock: Pick<Clock, 'sleep'>, throttled: () => void): Interceptor {
  let isThrottled = false;
  async function* paced<T>(messages: AsyncIterable<T>, signal: AbortSignal): AsyncGenerator<T> {
    for await (const message of messages) {
      const debtMs = bucket.take(1);
      if (debtMs > 0) {
        if (!isThrottled) throttled();
        isThrottled = true;
        await clock.sleep(debtMs, signal);
      }
      yield message;
    }
  }
  return (next) => async (request) => {
    const response = await next(request);
    return response.stream ? { ...response, message: paced(response.message, request.signal) } : response;
  };
}
