import { DroverError } from './errors.ts';

/** Runs tasks one after another, in the order given: one owner for a piece of state. */
export class SerialExecutor {
  #tail: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  readonly #limit: number;

  /** @param limit how many may wait or run; one more is refused with queue-full */
  constructor(limit = 1024) {
    this.#limit = limit;
  }

  get waiting(): number {
    return this.#waiting;
  }

  /** Runs `task` after those before it have settled, and gives its outcome. */
  run<T>(task: () => Promise<T> | T): Promise<T> {
    if (this.#waiting >= this.#limit) {
      return Promise.reject(new DroverError('queue-full', `${this.#limit} tasks are waiting already`, { hint: 'try again in a moment' }));
    }
    this.#waiting++;
    const result = this.#tail.then(task).finally(() => {
      this.#waiting--;
    });
    // The next task runs whatever became of this one; its caller alone gets the error.
    this.#tail = result.catch(() => undefined);
    return result;
  }

  /** Resolves when everything given so far has settled. */
  async idle(): Promise<void> {
    await this.#tail;
  }
}
