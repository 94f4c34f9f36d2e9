import { DroverError, withDeadline, type Clock } from '@drover/foundation';
import { labelOf, type SandboxRow } from '../../model/index.ts';

/** The error for a call that init leaves without a response. */
export function silentError(row: SandboxRow, what: string, ms: number): DroverError {
  const label = labelOf(row);
  return new DroverError('timed-out', `sandbox ${label} did not respond to the ${what} within ${Math.round(ms / 1000)} s`, {
    hint: `its init may be overloaded or replaced: see \`drover sandbox get ${label}\`; \`drover sandbox contain ${label}\` works without it`,
  });
}

/**
 * The messages of a call, each within a time limit. The caller ends the call itself, by its signal.
 * @param limitMs for the message after `received` ones; undefined: none
 * @param late the error for a message that is late
 */
export async function* inTime<T>(
  messages: AsyncIterable<T>,
  clock: Pick<Clock, 'sleep'>,
  limitMs: (received: number) => number | undefined,
  late: (ms: number) => DroverError,
): AsyncGenerator<T> {
  const iterator = messages[Symbol.asyncIterator]();
  for (let received = 0; ; received++) {
    const next = iterator.next();
    const ms = limitMs(received);
    const result = ms === undefined ? await next : await withDeadline(next, ms, clock, late);
    if (result.done === true) return;
    yield result.value;
  }
}

/** Expires when init has not taken the next message, or has not responded, in time. Waiting for the caller's input does not count. */
export class UploadWatch {
  readonly #clock: Pick<Clock, 'sleep'>;
  readonly #ms: number;
  readonly #late: (ms: number) => DroverError;
  readonly #abort = new AbortController();
  readonly #expired = Promise.withResolvers<never>();
  #waiting = new AbortController();

  constructor(ms: number, clock: Pick<Clock, 'sleep'>, late: (ms: number) => DroverError) {
    this.#ms = ms;
    this.#clock = clock;
    this.#late = late;
    // A call that ends in time never awaits it.
    this.#expired.promise.catch(() => undefined);
    this.#wait();
  }

  /** Aborts when it expires. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Rejects when it expires: a call may react late to its signal. */
  get expired(): Promise<never> {
    return this.#expired.promise;
  }

  /** Passes the messages to send. */
  async *watch<T>(messages: AsyncIterable<T>): AsyncGenerator<T> {
    this.stop();
    for await (const message of messages) {
      this.#wait();
      yield message;
      this.stop();
    }
    this.#wait();
  }

  stop(): void {
    this.#waiting.abort();
  }

  #wait(): void {
    this.#waiting = new AbortController();
    this.#clock.sleep(this.#ms, this.#waiting.signal).then(
      () => {
        const error = this.#late(this.#ms);
        this.#expired.reject(error);
        this.#abort.abort(error);
      },
      // The message was taken in time.
      () => undefined,
    );
  }
}
