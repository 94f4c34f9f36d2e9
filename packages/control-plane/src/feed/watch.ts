import { Notifier, type Clock } from '@drover/foundation';
import * as limits from '../limits.ts';
import type { EventStore } from '../store/index.ts';
import type { StoredEvent } from '../events/index.ts';

export interface WatchOptions {
  /** Everything after this id; absent: from now on. */
  readonly afterId?: number;
  /** Everything that is kept. */
  readonly fromStart?: boolean;
  /** Goes on with what comes; otherwise it ends at what there is. */
  readonly follow?: boolean;
  /** Empty or absent: every kind. */
  readonly kinds?: readonly string[];
  readonly subject?: string;
  readonly clock: Clock;
}

export interface WatchedEvent extends StoredEvent {
  /** Events that this watcher asked for and that were dropped just before this one, because it came too late (I-36). */
  readonly lost: number;
}

/**
 * Every event after an id, in order, without a gap or a repeat, then what comes (I-35).
 *
 * A watcher has no queue: it reads the store a page at a time, at its own pace, and is only woken. A slow one holds up nobody and
 * costs no memory; when the store has dropped what it had not read yet, it goes on with the oldest that is kept and is told how
 * many ids it missed. (With a filter that is an upper bound: what was dropped can no longer be asked whether it matched.)
 */
export async function* watchEvents(
  events: EventStore,
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
      // Read after the page: whatever was dropped before the page could be read is counted, whenever that was.
      lost += Math.max(0, start - position - page.filter((event) => event.id <= start).length);
      for (const event of page) {
        // Ids have no gaps: without a filter, what is missing between two of them was dropped.
        if (!filtered) lost += event.id - position - 1;
        yield { ...event, lost };
        lost = 0;
        position = event.id;
      }
      position = Math.max(position, start);
      if (page.length < limits.eventPage) {
        // Those that do not match are behind it as well: they will not be missed when they are trimmed.
        if (filtered) position = Math.max(position, upTo);
        if (!follow) return;
        await appended.wait(signal, limits.watchIntervalMs);
      }
    }
  } catch (error) {
    // The watcher went away: that is how a watch ends.
    if (!signal.aborted) throw error;
  } finally {
    unsubscribe();
  }
}

/** The id before the oldest event that is kept. */
async function startOf(events: EventStore): Promise<number> {
  // Read first: where nothing is kept, what is written before the second answer is not behind it.
  const last = await events.lastId();
  const [oldest] = await events.after(0, 1);
  return oldest === undefined ? last : oldest.id - 1;
}
