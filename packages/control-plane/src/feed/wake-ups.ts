import type { Logger } from '@drover/foundation';
import type { EventStore } from '../store/index.ts';
import { wakeReadBatch } from '../limits.ts';

/**
 * Wakes whoever waits for something to happen to a subject. One reader for all of them: each commit that wrote events is read
 * once, however many wait. A wake-up says "look again", nothing more.
 */
export class SubjectWakes {
  readonly #events: EventStore;
  readonly #logger: Logger;
  readonly #listeners = new Map<string, Set<() => void>>();
  readonly #unsubscribe: () => void;
  #lastId = 0;
  #dirty = false;
  #reading = false;

  private constructor(events: EventStore, lastId: number, logger: Logger) {
    this.#events = events;
    this.#lastId = lastId;
    this.#logger = logger;
    this.#unsubscribe = events.onAppend(() => {
      this.#dirty = true;
      void this.#read();
    });
  }

  static async open(events: EventStore, logger: Logger): Promise<SubjectWakes> {
    return new SubjectWakes(events, await events.lastId(), logger);
  }

  /** Calls `wake` after each event of the subject, until the returned function is called. */
  on(subject: string, wake: () => void): () => void {
    const listeners = this.#listeners.get(subject) ?? new Set();
    this.#listeners.set(subject, listeners);
    listeners.add(wake);
    return () => {
      listeners.delete(wake);
      if (listeners.size === 0 && this.#listeners.get(subject) === listeners) this.#listeners.delete(subject);
    };
  }

  /**
   * Gives what `look` finds, looking again after each event of the subject until it finds something.
   * @throws the signal's reason when it aborts first
   */
  async until<T>(subject: string, look: () => Promise<T | undefined>, signal: AbortSignal): Promise<T> {
    let woken = true;
    let wake: (() => void) | undefined;
    const call = (): void => {
      woken = true;
      wake?.();
    };
    const off = this.on(subject, call);
    signal.addEventListener('abort', call);
    try {
      for (;;) {
        signal.throwIfAborted();
        // Cleared before looking: an event that comes during the look makes another one.
        woken = false;
        const found = await look();
        if (found !== undefined) return found;
        if (!woken && !signal.aborted) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
          wake = undefined;
        }
      }
    } finally {
      off();
      signal.removeEventListener('abort', call);
    }
  }

  close(): void {
    this.#unsubscribe();
    this.#listeners.clear();
  }

  async #read(): Promise<void> {
    if (this.#reading) return;
    this.#reading = true;
    try {
      while (this.#dirty) {
        this.#dirty = false;
        if (this.#listeners.size === 0) {
          this.#lastId = Math.max(this.#lastId, await this.#events.lastId());
          // Whoever came meanwhile may have missed what was just skipped.
          for (const listeners of this.#listeners.values()) for (const wake of listeners) wake();
          continue;
        }
        for (;;) {
          const batch = await this.#events.after(this.#lastId, wakeReadBatch);
          for (const event of batch) {
            this.#lastId = event.id;
            for (const wake of this.#listeners.get(event.subject) ?? []) wake();
          }
          if (batch.length < wakeReadBatch) break;
        }
      }
    } catch (error) {
      // Whoever waits looks again after the next event; a store that is gone is said by every other call.
      this.#logger.warn({ err: error }, 'events could not be read for wake-ups');
    } finally {
      this.#reading = false;
    }
  }
}
