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
  /** Continues with new events; otherwise it ends at the newest. */
  readonly follow?: boolean;
  /** Empty or absent: every kind. */
  readonly kinds?: readonly string[];
  readonly subject?: string;
  readonly clock: Clock;
}

export interface WatchedEvent extends StoredEvent {
  /** Requested events just before this one that were dropped before this watcher could read them (I-36). */
  readonly lost: number;
}

/**
 * Every event after an id, in order, without a gap or a repeat, then new ones (I-35).
 *
 * A watcher has no queue: it reads the store a page at a time, at its own pace; a commit only wakes it. A slow watcher delays no other
 * and costs no memory. When the store has dropped events that it had not read, it continues with the oldest retained one, which counts
 * the lost ids. (With a filter the count is an upper bound: a dropped event can no longer be matched.)
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
      // Read after the page: all events that were dropped before the page was read are counted.
      lost += Math.max(0, start - position - page.filter((event) => event.id <= start).length);
      for (const event of page) {
        // Ids have no gaps: without a filter, an id that is missing was dropped.
        if (!filtered) lost += event.id - position - 1;
        yield { ...event, lost };
        lost = 0;
        position = event.id;
      }
      position = Math.max(position, start);
      if (page.length < limits.eventPage) {
        // Events that do not match are passed too: they do not count as lost when they are trimmed.
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
  // Read first: if no event is retained, those written before the second read are not skipped.
  const last = await events.lastId();
  const [oldest] = await events.after(0, 1);
  return oldest === undefined ? last : oldest.id - 1;
}
