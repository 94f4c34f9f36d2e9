import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import { optionsOf, type Calls } from './calls.ts';
import { reconnecting } from './reconnecting.ts';

export interface WatchOptions {
  /** Events after this id; absent: from now on, or with `fromStart` from the oldest retained one. */
  readonly afterId?: bigint;
  readonly fromStart?: boolean;
  /** Default true. False ends after the stored events. */
  readonly follow?: boolean;
  /** sandbox, host, session, identity, init, network; absent: all. */
  readonly kinds?: readonly string[];
  /** A sandbox or host, by id or name; an unknown one rejects with sandbox-not-found. */
  readonly subject?: string;
  /** Begins with this many of the last matching events, instead of `afterId` or `fromStart`. */
  readonly tail?: number;
  /** Called once, when the watch has begun: it delivers every later event, whatever happens to the connection. */
  readonly onBegan?: () => void;
  /** Called each time the connection has broken, before the next attempt. */
  readonly onReconnect?: (error: Error) => void;
  readonly signal?: AbortSignal;
}

export type EventsApi = ReturnType<typeof eventsApi>;

export function eventsApi(client: Client<typeof api.EventService>, calls: Calls) {
  return {
    /** Events in order. After a broken connection it goes on after the last delivered event, or where it began (I-35). */
    async *watch(options: WatchOptions = {}): AsyncGenerator<api.Event, void, undefined> {
      const { signal, follow = true, kinds = [], subject = '', onBegan, onReconnect } = options;
      let { tail = 0 } = options;
      let afterId = options.afterId ?? 0n;
      let fromStart = options.fromStart ?? false;
      let begun = false;
      const open = (): AsyncIterable<api.Event> =>
        client.watchEvents({ afterId, fromStart, tail, follow, kinds: [...kinds], subject, announce: true }, optionsOf(signal));
      for await (const event of reconnecting(calls, open, { follow, onReconnect, signal })) {
        afterId = event.id;
        tail = 0;
        // An id of 0 would ask for later events only; after none come all of them.
        fromStart = afterId === 0n;
        if (event.kind !== 'watch') yield event;
        else if (!begun) {
          begun = true;
          onBegan?.();
        }
      }
    },
  };
}
