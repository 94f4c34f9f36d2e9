import { Duplex } from 'node:stream';
import type { Interceptor } from '@connectrpc/connect';
import type { Clock } from '@drover/foundation';

/** A token bucket that refills at a constant rate. Taking more tokens than it holds creates a debt, which the caller waits out. */
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

  /** Takes `count` tokens. @returns the milliseconds until the debt is paid; 0: no debt */
  take(count: number): number {
    const now = this.#clock.now();
    // A clock that is set back neither adds nor removes tokens.
    const passedMs = Math.max(0, now - this.#at);
    this.#at = now;
    this.#tokens = Math.min(this.#burst, this.#tokens + (passedMs * this.#perSecond) / 1000) - count;
    return this.#tokens >= 0 ? 0 : Math.ceil((-this.#tokens * 1000) / this.#perSecond);
  }
}

/** Reads from `inner` at the rate of the bucket, one token for each byte. While it waits, backpressure stops the remote writer. */
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
          // The stream closed during the wait.
          () => undefined,
        );
      }
      if (this.#full || this.#owing) inner.pause();
    });
    inner.once('end', () => this.push(null));
    inner.once('error', (error) => this.destroy(error));
    inner.once('close', () => {
      // Data received before its end can still be read.
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
 * Takes a token for each message from the peer, over all calls of one connection, and waits out a debt before it reads the next one.
 * The burst also bounds how long a batch of messages keeps the process from serving other sessions.
 * @param throttled called once, at the first debt
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
