import { DroverError } from './errors.ts';
import { Notifier } from './notifier.ts';

/** A bounded queue between writers and one reader. When it is full, `push` throws queue-full, or with `dropOldest` drops and counts the oldest item. */
export class BoundedQueue<T> implements AsyncIterable<T> {
  readonly #items: T[] = [];
  readonly #capacity: number;
  readonly #dropOldest: boolean;
  readonly #name: string;
  readonly #changed = new Notifier();
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

  /** Returns the number of items dropped since the last call. */
  takeDropped(): number {
    const dropped = this.#dropped;
    this.#dropped = 0;
    return dropped;
  }

  /** Adds an item; does nothing after `end`. @throws {DroverError} queue-full */
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
    this.#changed.notify();
  }

  /** The reader receives the queued items, then the end, or `error`. */
  end(error?: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#changed.notify();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    for (;;) {
      while (this.#items.length > 0) yield this.#items.shift() as T;
      if (this.#ended) {
        if (this.#error !== undefined) throw this.#error;
        return;
      }
      await this.#changed.wait();
    }
  }
}
