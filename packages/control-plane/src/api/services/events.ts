import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { clip, DroverError } from '@drover/foundation';
import { api } from '@drover/protocol';
import { eventKinds } from '../../events/index.ts';
import { watchEvents } from '../../feed/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { eventToWire } from '../convert/index.ts';
import { eventPosition, eventSubject } from './event-selection.ts';
import { worldviewMethod } from './worldview.ts';

export function eventService(context: ApiContext): ServiceImpl<typeof api.EventService> {
  return {
    ...worldviewMethod(context),

    async *watchEvents(request, { signal }) {
      const { store, clock } = context;
      checkKinds(request.kinds);
      const subject = request.subject === '' ? '' : await eventSubject(store, request.subject);
      const filter = { kinds: request.kinds, ...(subject === '' ? {} : { subject }) };
      if (request.tail > 0 && request.afterId > 0n) {
        throw new DroverError('invalid-argument', 'a watch begins either after an event or with the last events', {
          hint: 'use --since or --tail',
        });
      }
      const first = request.tail > 0 ? await store.events.beforeLast(request.tail, filter) : undefined;
      const fromStart = first === undefined ? request.fromStart : first === 0;
      const position = first ?? (request.fromStart ? 0 : await eventPosition(store.events, request.afterId));
      // Sent before the first wait: a watcher whose stream breaks before its first event has a position to go on from.
      if (request.announce) yield create(api.EventSchema, { id: BigInt(position), kind: 'watch', type: 'Began' });
      const options = {
        clock,
        follow: request.follow,
        kinds: request.kinds,
        subject,
        ...(fromStart ? { fromStart } : { afterId: position }),
      };
      for await (const event of watchEvents(store.events, options, signal)) yield eventToWire(event);
      // A follower that is cut off must not mistake that for the end.
      signal.throwIfAborted();
    },
  };
}

/** @throws {DroverError} invalid-argument */
function checkKinds(kinds: readonly string[]): void {
  const known: readonly string[] = eventKinds;
  const unknown = kinds.find((kind) => !known.includes(kind));
  if (unknown === undefined) return;
  throw new DroverError('invalid-argument', `there are no events of the kind ${JSON.stringify(clip(unknown))}`, {
    hint: `the kinds are ${eventKinds.join(', ')}`,
  });
}
