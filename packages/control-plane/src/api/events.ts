import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { api } from '@drover/protocol';
import { watchEvents } from '../events/index.ts';
import type { ApiContext } from './context.ts';
import { eventToWire } from './convert.ts';

export function eventService(context: ApiContext): ServiceImpl<typeof api.EventService> {
  return {
    async *watchEvents(request, { signal }) {
      const { store, clock } = context;
      const position = request.fromStart ? 0 : Number(request.afterId) || (await store.events.lastId());
      // Said before anything is waited for: a stream that breaks before its first event leaves its watcher with a place to go on from.
      if (request.announce) yield create(api.EventSchema, { id: BigInt(position), kind: 'watch', type: 'Began' });
      const options = {
        clock,
        follow: request.follow,
        kinds: request.kinds,
        subject: request.subject,
        ...(request.fromStart ? { fromStart: true } : { afterId: position }),
      };
      for await (const event of watchEvents(store.events, options, signal)) yield eventToWire(event);
      // A follower that is cut off must not take it for the end.
      signal.throwIfAborted();
    },
  };
}
