import { Backoff, type Clock, type Logger } from '@drover/foundation';
import { subscribeBackoffBaseMs, subscribeBackoffCapMs } from '../limits.ts';
import type { EventStore } from '../store/index.ts';
import { watchEvents, type WatchedEvent } from './watch.ts';

export interface Subscription {
  /** For the log. */
  readonly name: string;
  /** After this event, everything that is kept, or (default) what comes from now on. */
  readonly from?: { readonly afterId: number } | 'start' | 'now';
  /** Empty or absent: every kind. */
  readonly kinds?: readonly string[];
  readonly subject?: string;
  readonly clock: Clock;
  readonly logger: Logger;
}

/**
 * Gives each event, in order, to a policy in this process; the next one when the handler is done with the one before (I-36). A slow
 * handler holds up nobody, and is told with its next event how many it lost. One that throws is logged, and gets the next event; a
 * store that does not answer is asked again. Resolves when the signal aborts, and never rejects.
 */
export async function subscribe(
  events: EventStore,
  subscription: Subscription,
  handler: (event: WatchedEvent) => Promise<void> | void,
  signal: AbortSignal,
): Promise<void> {
  const { name, from = 'now', kinds = [], subject = '', clock, logger } = subscription;
  const backoff = new Backoff({ baseMs: subscribeBackoffBaseMs, capMs: subscribeBackoffCapMs });
  let position = from === 'start' ? 0 : from === 'now' ? undefined : from.afterId;
  while (!signal.aborted) {
    try {
      // Read once: after a failure it goes on from there.
      position ??= await events.lastId();
      const start = position === 0 && from === 'start' ? { fromStart: true } : { afterId: position };
      for await (const event of watchEvents(events, { ...start, follow: true, kinds, subject, clock }, signal)) {
        // Before the handler: what it fails at is not given to it again.
        position = event.id;
        backoff.reset();
        try {
          await handler(event);
        } catch (error) {
          logger.error(
            { err: error, policy: name, event: event.id, type: event.type, subject: event.subject },
            'a policy failed at an event',
          );
        }
      }
    } catch (error) {
      logger.warn({ err: error, policy: name }, 'a policy cannot read its events; it is tried again');
      // Only the signal rejects it, and the loop looks at that.
      await clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
    }
  }
}
