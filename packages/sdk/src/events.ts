import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';
import { reconnecting } from './reconnecting.ts';

export interface WatchOptions {
  /** Events after this id; absent begins now (or at the first kept one, with `fromStart`). */
  readonly afterId?: bigint;
  readonly fromStart?: boolean;
  /** Default true; false ends after what is stored. */
  readonly follow?: boolean;
  /** sandbox, host, session, identity, init, network; absent is all. */
  readonly kinds?: readonly string[];
  /** A sandbox or host, by id or name; an unknown one rejects with sandbox-not-found. */
  readonly subject?: string;
  /** Begins with the last so many of the events that are asked for, instead of `afterId` or `fromStart`; 0 begins now. */
  readonly tail?: number;
  /** Told once, when the watch stands: every event from then on will be handed out, whatever happens to the connection. */
  readonly onBegan?: () => void;
  /** Told each time the connection broke and is being made again. */
  readonly onReconnect?: (error: Error) => void;
  readonly signal?: AbortSignal;
}

export interface EventsApi {
  /** In order; after a broken connection it goes on behind the last event that was handed out, or where it began (I-35). */
  watch(options?: WatchOptions): AsyncIterable<api.Event>;
}

export function eventsApi(client: Client<typeof api.EventService>, calls: Calls): EventsApi {
  return {
    async *watch(options = {}) {
      const { signal, follow = true, kinds = [], subject = '', onBegan, onReconnect } = options;
      let { tail = 0 } = options;
      let afterId = options.afterId ?? 0n;
      let fromStart = options.fromStart ?? false;
      let stands = false;
      const open = (): AsyncIterable<api.Event> =>
        client.watchEvents({ afterId, fromStart, tail, follow, kinds: [...kinds], subject, announce: true }, withSignal(signal));
      for await (const event of reconnecting(calls, open, { follow, onReconnect, signal })) {
        afterId = event.id;
        tail = 0;
        // 0 asks for what comes from now on: what comes after nothing is everything.
        fromStart = afterId === 0n;
        if (event.kind !== 'watch') yield event;
        else if (!stands) {
          stands = true;
          onBegan?.();
        }
      }
    },
  };
}
