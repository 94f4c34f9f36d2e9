import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { isSandboxId } from '@drover/foundation';
import { api } from '@drover/protocol';
import { watchEvents } from '../../feed/index.ts';
import { worldviewPage } from '../../limits.ts';
import type { SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { eventToWire, factsOf, identityStatusToWire, initToWire, sessionToWire, type SandboxFacts } from '../convert/index.ts';
import { eventPosition } from './event-selection.ts';

/** The kinds of events that change a sandbox's view. */
const kinds = ['sandbox', 'session', 'identity', 'init'];

/**
 * The present state, page by page, then every later event (I-35). The position of the snapshot is read before its pages: a change during the
 * reading is repeated as an event, and none is missing. A repeated event changes nothing.
 */
export function worldviewMethod(context: ApiContext): Pick<ServiceImpl<typeof api.EventService>, 'watchWorldview'> {
  const { store, sessions, clock } = context;

  async function* snapshot(subject: string, atEventId: bigint): AsyncGenerator<api.WorldviewPage> {
    let after: SandboxRow | undefined;
    for (;;) {
      const rows = await rowsAfter(subject, after);
      const page = rows.slice(0, worldviewPage);
      const facts = await factsOf(store, sessions, page);
      const last = rows.length === page.length;
      yield create(api.WorldviewPageSchema, { atEventId, sandboxes: page.map((row) => viewToWire(row, facts(row))), last });
      if (last) return;
      after = page.at(-1);
    }
  }

  async function rowsAfter(subject: string, after: SandboxRow | undefined): Promise<readonly SandboxRow[]> {
    // One more row than a page shows whether another follows.
    if (subject === '') return await store.sandboxes.list({ limit: worldviewPage + 1, ...(after === undefined ? {} : { after }) });
    return isSandboxId(subject) ? [await store.sandboxes.find(subject)] : [];
  }

  return {
    async *watchWorldview(request, { signal }) {
      const { sandbox } = request;
      const subject = sandbox === '' || isSandboxId(sandbox) ? sandbox : (await store.sandboxes.find(sandbox)).id;
      const position = await eventPosition(store.events, request.afterId);
      if (request.afterId === 0n) {
        for await (const page of snapshot(subject, BigInt(position))) {
          yield create(api.WorldviewUpdateSchema, { update: { case: 'page', value: page } });
        }
        if (!request.follow) return;
      }
      const options = { clock, afterId: position, follow: request.follow, kinds, subject };
      for await (const event of watchEvents(store.events, options, signal)) {
        yield create(api.WorldviewUpdateSchema, { update: { case: 'event', value: eventToWire(event) } });
      }
      // A follower that is cut off must not mistake that for the end.
      signal.throwIfAborted();
    },
  };
}

function viewToWire(row: SandboxRow, facts: SandboxFacts): api.SandboxView {
  return create(api.SandboxViewSchema, {
    sandboxId: row.id,
    session: sessionToWire(row, facts),
    identity: identityStatusToWire(row, facts),
    init: initToWire(row, facts),
  });
}
