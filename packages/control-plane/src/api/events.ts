import type { ServiceImpl } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import { watchEvents } from '../events/index.ts';
import type { ApiContext } from './context.ts';
import { eventToWire } from './convert.ts';

export function eventService(context: ApiContext): ServiceImpl<typeof api.EventService> {
  return {
    async *watchEvents(request, { signal }) {
      const { store, clock } = context;
      const options = {
        clock,
        follow: request.follow,
        kinds: request.kinds,
        subject: request.subject,
        // Neither: from now on.
        ...(request.fromStart ? { fromStart: true } : request.afterId > 0n ? { afterId: Number(request.afterId) } : {}),
      };
      for await (const event of watchEvents(store.events, options, signal)) yield eventToWire(event);
      // A follower that is cut off must not take it for the end.
      signal.throwIfAborted();
    },
  };
}
