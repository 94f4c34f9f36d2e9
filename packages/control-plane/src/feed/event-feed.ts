import { Notifier, type Clock, type Logger } from '@drover/foundation';
import type { StoredEvent } from '../events/index.ts';
import { subscribe } from './subscribe.ts';
import type { ReadableEvents } from './watch.ts';

/**
 * Called for each event of the store, and with undefined for a change that only this replica knows. `lost` counts the events that were
 * dropped unread before this one. A listener must return quickly; its errors are logged.
 */
export type FeedListener = (subject: string, event: (StoredEvent & { readonly lost: number }) | undefined) => void;

/**
 * Reads the store's events once for all listeners of this process. A call carries no state: a listener reads the rows again.
 */
export class EventFeed {
  readonly #logger: Logger;
  readonly #listeners = new Set<FeedListener>();
  readonly #bySubject = new Map<string, Set<() => void>>();
  readonly #closing = new AbortController();
  readonly #done: Promise<void>;

  private constructor(events: ReadableEvents, afterId: number, clock: Clock, logger: Logger) {
    this.#logger = logger;
    const subscription = { name: 'feed', from: { afterId }, clock, logger };
    this.#done = subscribe(events, subscription, (event) => this.#pass(event.subject, event), this.#closing.signal);
  }

  /** Follows the events that are written from now on. */
  static async open(events: ReadableEvents, clock: Clock, logger: Logger): Promise<EventFeed> {
    return new EventFeed(events, await events.lastId(), clock, logger);
  }

  /** @returns a function that removes the listener */
  listen(listener: FeedListener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Calls `wake` after each change of the subject. @returns a function that removes the callback */
  on(subject: string, wake: () => void): () => void {
    const wakes = this.#bySubject.get(subject) ?? new Set();
    this.#bySubject.set(subject, wakes);
    wakes.add(wake);
    return () => {
      wakes.delete(wake);
      if (wakes.size === 0 && this.#bySubject.get(subject) === wakes) this.#bySubject.delete(subject);
    };
  }

  /** Reports a change that has no event, such as one of a connection of this replica. */
  readonly changed = (subject: string): void => this.#pass(subject, undefined);

  /** As `changed`, but only for the callbacks of the subject. */
  readonly wake = (subject: string): void => {
    for (const wake of this.#bySubject.get(subject) ?? []) wake();
  };

  /**
   * Calls `check` now and after each change of the subject, until it returns a value.
   * @throws the error of `check`; the signal's reason when it aborts first
   */
  async until<T>(subject: string, check: () => Promise<T | undefined>, signal: AbortSignal): Promise<T> {
    const changed = new Notifier();
    const off = this.on(subject, changed.notify);
    try {
      for (;;) {
        signal.throwIfAborted();
        const found = await check();
        if (found !== undefined) return found;
        await changed.wait(signal);
      }
    } finally {
      off();
    }
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await this.#done;
  }

  #pass(subject: string, event: Parameters<FeedListener>[1]): void {
    // A lost event may concern any subject.
    for (const each of event !== undefined && event.lost > 0 ? this.#bySubject.keys() : [subject]) this.wake(each);
    for (const listener of this.#listeners) {
      try {
        listener(subject, event);
      } catch (error) {
        this.#logger.error({ err: error, subject, type: event?.type }, 'a listener of the event feed threw');
      }
    }
  }
}
