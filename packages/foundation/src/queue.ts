import { DroverError } from './errors.ts';

/**
 * A bounded queue between one writer and one reader.
 * Full, `push` throws queue-full, or with `dropOldest` drops the oldest and counts it.
 */
export class BoundedQueue<T> implements AsyncIterable<T> {
  readonly #items: T[] = [];
  readonly #capacity: number;
  readonly #dropOldest: boolean;
  readonly #name: string;
  #wake: (() => void) | undefined;
  #ended = false;
  #error: unknown;
  #dropped = 0;

  constructor(options: { readonly name: string; readonly capacity: number; readonly dropOldest?: boolean }) {
    this.#name = options.name;
    this.#capacity = options.capacity;
    this.#dropOldest = options.dropOldest ?? false;
  }

  get size(): number {
    return this.#items.length;
  }

  /** How many were dropped since this was last called. */
  takeDropped(): number {
    const dropped = this.#dropped;
    this.#dropped = 0;
    return dropped;
  }

  /** Adds an item; does nothing once ended. @throws {DroverError} queue-full */
  push(item: T): void {
    if (this.#ended) return;
    if (this.#items.length >= this.#capacity) {
      if (!this.#dropOldest) {
        throw new DroverError('queue-full', `${this.#name} is full (${this.#capacity} waiting)`, { hint: 'try again in a moment' });
      }
      this.#items.shift();
      this.#dropped++;
    }
    this.#items.push(item);
    this.#wake?.();
  }

  /** Readers get what is queued, then the end; with `error`, the error. */
  end(error?: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    for (;;) {
      while (this.#items.length > 0) yield this.#items.shift() as T;
      if (this.#ended) {
        if (this.#error !== undefined) throw this.#error;
        return;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
  }
}
