import { Backoff, type Clock, type Logger } from '@drover/foundation';
import { subscribeBackoffBaseMs, subscribeBackoffCapMs } from '../limits.ts';
import { watchEvents, type ReadableEvents, type WatchedEvent } from './watch.ts';

export interface Subscription {
  /** The name in the log. */
  readonly name: string;
  /** After this event, from the oldest retained one, or (default) from now on. */
  readonly from?: { readonly afterId: number } | 'start' | 'now';
  /** Empty or absent: every kind. */
  readonly kinds?: readonly string[];
  readonly subject?: string;
  readonly clock: Clock;
  readonly logger: Logger;
}

/**
 * Calls `handler` with each event in order, one at a time (I-36). A slow handler delays no other subscriber; `lost` of its next event counts the
 * events that it missed. An error of the handler is logged, and the next event follows. After an error of the store, reading is retried with
 * a backoff.
 * Resolves when the signal aborts, and never rejects.
 */
export async function subscribe(
  events: ReadableEvents,
  subscription: Subscription,
  handler: (event: WatchedEvent) => Promise<void> | void,
  signal: AbortSignal,
): Promise<void> {
  const { name, from = 'now', kinds = [], subject = '', clock, logger } = subscription;
  const backoff = new Backoff({ baseMs: subscribeBackoffBaseMs, capMs: subscribeBackoffCapMs });
  let position = from === 'start' ? 0 : from === 'now' ? undefined : from.afterId;
  while (!signal.aborted) {
    try {
      // Set once: after a failure, the subscription continues from its position.
      position ??= await events.lastId();
      const start = position === 0 && from === 'start' ? { fromStart: true } : { afterId: position };
      for await (const event of watchEvents(events, { ...start, follow: true, kinds, subject, clock }, signal)) {
        // Set before the handler runs: an event whose handler fails is not repeated.
        position = event.id;
        backoff.reset();
        try {
          await handler(event);
        } catch (error) {
          logger.error(
            { err: error, subscriber: name, event: event.id, type: event.type, subject: event.subject },
            'a subscriber failed to handle an event',
          );
        }
      }
    } catch (error) {
      logger.warn({ err: error, subscriber: name }, 'events could not be read; retrying');
      await clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
    }
  }
}
