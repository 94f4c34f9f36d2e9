import { DroverError } from './errors.ts';

const defaultLimit = 1024;

/** Runs tasks one after another, in the order of their calls: the single owner of a piece of state. */
export class SerialExecutor {
  #tail: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  readonly #limit: number;

  /** @param limit tasks that may wait or run; one more is refused with queue-full */
  constructor(limit = defaultLimit) {
    this.#limit = limit;
  }

  /** Tasks that wait or run. */
  get waiting(): number {
    return this.#waiting;
  }

  /** Runs `task` after all earlier ones have settled, and returns its outcome. */
  run<T>(task: () => Promise<T> | T): Promise<T> {
    if (this.#waiting >= this.#limit) {
      return Promise.reject(new DroverError('queue-full', `${this.#limit} tasks are waiting already`, { hint: 'try again in a moment' }));
    }
    this.#waiting++;
    const result = this.#tail.then(task).finally(() => {
      this.#waiting--;
    });
    // A failure is reported to its caller only; the next task runs all the same.
    this.#tail = result.catch(() => undefined);
    return result;
  }

  /** Resolves when every task so far has settled. */
  async idle(): Promise<void> {
    await this.#tail;
  }
}

/** One SerialExecutor per key, for as long as the key has tasks: tasks of one key run in order, tasks of different keys concurrently. */
export class KeyedExecutor<K> {
  readonly #executors = new Map<K, SerialExecutor>();
  readonly #limit: number;

  /** @param limit tasks of one key that may wait or run; one more is refused with queue-full */
  constructor(limit = defaultLimit) {
    this.#limit = limit;
  }

  /** Tasks of `key` that wait or run. */
  waiting(key: K): number {
    return this.#executors.get(key)?.waiting ?? 0;
  }

  /** Runs `task` after all earlier ones of `key` have settled, and returns its outcome. */
  async run<T>(key: K, task: () => Promise<T> | T): Promise<T> {
    let executor = this.#executors.get(key);
    if (executor === undefined) this.#executors.set(key, (executor = new SerialExecutor(this.#limit)));
    try {
      return await executor.run(task);
    } finally {
      if (executor.waiting === 0 && this.#executors.get(key) === executor) this.#executors.delete(key);
    }
  }

  /** Resolves when every task so far, of any key, has settled. */
  async idle(): Promise<void> {
    await Promise.all([...this.#executors.values()].map(async (executor) => await executor.idle()));
  }
}
