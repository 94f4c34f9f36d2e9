import { Notifier, type Clock } from '@drover/foundation';
import * as limits from '../limits.ts';
import type { EventStore } from '../store/index.ts';
import type { StoredEvent } from '../events/index.ts';

export type ReadableEvents = Pick<EventStore, 'after' | 'lastId' | 'onAppend'>;

export interface WatchOptions {
  /** All events after this id; absent: from now on. */
  readonly afterId?: number;
  /** All retained events. */
  readonly fromStart?: boolean;
  /** Continues with new events; otherwise the watch ends at the newest one. */
  readonly follow?: boolean;
  /** Empty or absent: every kind. */
  readonly kinds?: readonly string[];
  readonly subject?: string;
  readonly clock: Clock;
}

export interface WatchedEvent extends StoredEvent {
  /** How many requested events, just before this one, were dropped before this watcher read them (I-36). */
  readonly lost: number;
}

/**
 * Every event after an id, in order, without a gap or a repeat, then new ones (I-35).
 *
 * A watcher has no queue: a commit only wakes it, and it reads the store page by page. A slow watcher delays no other watcher and uses no
 * memory. If the store has dropped events that the watcher had not read, it continues with the oldest retained event, whose `lost` counts
 * them. (With a filter the count is an upper bound: dropped events can no longer be matched.)
 */
export async function* watchEvents(
  events: ReadableEvents,
  options: WatchOptions,
  signal: AbortSignal,
): AsyncGenerator<WatchedEvent, void, undefined> {
  const { clock, follow = false, kinds = [], subject = '' } = options;
  const filtered = kinds.length > 0 || subject !== '';
  const filter = { kinds, ...(subject === '' ? {} : { subject }) };
  const appended = new Notifier(clock);
  const unsubscribe = events.onAppend(appended.notify);
  try {
    let position = options.fromStart === true ? await startOf(events) : (options.afterId ?? (await events.lastId()));
    let lost = 0;
    for (;;) {
      signal.throwIfAborted();
      const upTo = await events.lastId();
      const page = await events.after(position, limits.eventPage, filter);
      const start = filtered ? await startOf(events) : 0;
      // `start` is read after the page, so that it includes all events dropped before the page was read.
      lost += Math.max(0, start - position - page.filter((event) => event.id <= start).length);
      for (const event of page) {
        // Ids have no gaps: without a filter, a missing id is a dropped event.
        if (!filtered) lost += event.id - position - 1;
        yield { ...event, lost };
        lost = 0;
        position = event.id;
      }
      position = Math.max(position, start);
      if (page.length < limits.eventPage) {
        // Advances past events that do not match, so that they do not count as lost when they are trimmed.
        if (filtered) position = Math.max(position, upTo);
        if (!follow) return;
        await appended.wait(signal, limits.watchIntervalMs);
      }
    }
  } catch (error) {
    // A watch ends when its watcher disconnects.
    if (!signal.aborted) throw error;
  } finally {
    unsubscribe();
  }
}

/** The id before the oldest retained event. */
async function startOf(events: ReadableEvents): Promise<number> {
  // `last` is read first: if no event is retained, events written between the two reads are not skipped.
  const last = await events.lastId();
  const [oldest] = await events.after(0, 1);
  return oldest === undefined ? last : oldest.id - 1;
}
