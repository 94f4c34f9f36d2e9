import { Readable } from 'node:stream';
import { chunkBytes } from './limits.ts';

/** `bytes` in pieces that fit a message. */
export function* chunksOf(bytes: Uint8Array, size = chunkBytes): Generator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield bytes.subarray(at, at + size);
}

/** Messages handed from a writer to whichever connection stands at the moment. An offer settles when its message was taken. */
export class Handoff<T> {
  readonly #waiting: { readonly kind: string; item: T; readonly taken: () => void }[] = [];
  readonly #capacity: number;
  #ended = false;
  #wake: (() => void) | undefined;

  /** @param capacity messages that may wait; those beyond are dropped, as only a caller that does not await its offers makes them */
  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  async offer(item: T): Promise<void> {
    if (this.#ended || this.#waiting.length >= this.#capacity) return;
    await new Promise<void>((taken) => {
      this.#waiting.push({ kind: '', item, taken });
      this.#wake?.();
    });
  }

  /** Offers an item in the place of one of its kind that still waits. */
  replace(kind: string, item: T): void {
    const same = this.#waiting.find((entry) => entry.kind === kind);
    if (same !== undefined) same.item = item;
    else if (!this.#ended && this.#waiting.length < this.#capacity) this.#waiting.push({ kind, item, taken: () => undefined });
    this.#wake?.();
  }

  /** The readers end when they have what was offered. */
  end(): void {
    this.#ended = true;
    this.#wake?.();
  }

  /** Nobody is going to read any more: what waits is let go. */
  close(): void {
    this.end();
    for (const { taken } of this.#waiting.splice(0)) taken();
  }

  /** What is offered, for one connection; ends when the signal aborts, leaving what was not taken to the next one. */
  async *items(signal: AbortSignal): AsyncGenerator<T, void, undefined> {
    const wake = (): void => this.#wake?.();
    signal.addEventListener('abort', wake);
    try {
      while (!signal.aborted) {
        const next = this.#waiting.shift();
        if (next !== undefined) {
          next.taken();
          yield next.item;
          continue;
        }
        if (this.#ended) return;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        this.#wake = undefined;
      }
    } finally {
      signal.removeEventListener('abort', wake);
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

  /** Resolves when the reader wants more, or will never: the output of a stream that was destroyed is thrown away. */
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

/** Tells a stream's callback how `work` ended. */
export async function report(work: Promise<void>, done: (error?: Error | null) => void): Promise<void> {
  let failure: Error | undefined;
  try {
    await work;
  } catch (error) {
    failure = error instanceof Error ? error : new Error(String(error));
  }
  done(failure);
}
