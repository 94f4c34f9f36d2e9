import { Readable } from 'node:stream';
import { Notifier } from '@drover/foundation';
import { chunkBytes } from './limits.ts';

/** `bytes` in pieces that fit into a message. */
export function* chunksOf(bytes: Uint8Array, size = chunkBytes): Generator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield bytes.subarray(at, at + size);
}

/** Messages from a writer to the connection of the moment. An offer settles when a connection has taken its message. */
export class Handoff<T> {
  readonly #waiting: { readonly kind: string; item: T; readonly taken: () => void }[] = [];
  readonly #capacity: number;
  #ended = false;
  readonly #changed = new Notifier();

  /** @param capacity messages that may wait. More are dropped; a caller that awaits its offers never has more. */
  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  async offer(item: T): Promise<void> {
    if (this.#ended || this.#waiting.length >= this.#capacity) return;
    await new Promise<void>((taken) => {
      this.#waiting.push({ kind: '', item, taken });
      this.#changed.notify();
    });
  }

  /** Offers an item, in place of a waiting one of the same kind. */
  replace(kind: string, item: T): void {
    const same = this.#waiting.find((entry) => entry.kind === kind);
    if (same !== undefined) same.item = item;
    else if (!this.#ended && this.#waiting.length < this.#capacity) this.#waiting.push({ kind, item, taken: () => undefined });
    this.#changed.notify();
  }

  /** Readers end after the waiting items. */
  end(): void {
    this.#ended = true;
    this.#changed.notify();
  }

  /** There will be no more readers: the waiting offers settle. */
  close(): void {
    this.end();
    for (const { taken } of this.#waiting.splice(0)) taken();
  }

  /** The items for one connection. It ends when the signal aborts; the next connection gets the remaining items. */
  async *items(signal: AbortSignal): AsyncGenerator<T, void, undefined> {
    while (!signal.aborted) {
      const next = this.#waiting.shift();
      if (next !== undefined) {
        next.taken();
        yield next.item;
        continue;
      }
      if (this.#ended) return;
      // The loop's condition handles an abort.
      await this.#changed.wait(signal).catch(() => undefined);
    }
  }
}

/** A readable whose writer waits for its reader. */
export class OutputStream extends Readable {
  #resume: (() => void) | undefined;

  constructor() {
    super({ highWaterMark: 4 * chunkBytes });
  }

  override _read(): void {
    this.#resume?.();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#resume?.();
    done(error);
  }

  /** Resolves when the reader wants more, or the stream was destroyed, which drops the output. */
  async accept(bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    if (this.destroyed || signal.aborted || this.push(bytes)) return;
    await new Promise<void>((resolve) => {
      this.#resume = resolve;
      signal.addEventListener('abort', () => resolve(), { once: true });
      if (this.destroyed) resolve();
    });
    this.#resume = undefined;
  }
}

/** Passes the outcome of `work` to a stream's callback. */
export async function report(work: Promise<void>, done: (error?: Error | null) => void): Promise<void> {
  let failure: Error | undefined;
  try {
    await work;
  } catch (error) {
    failure = error instanceof Error ? error : new Error(String(error));
  }
  done(failure);
}
