import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { FakeClock, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { link } from '@drover/protocol';
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest';
import { hostEventsPerSandboxHour, maxEgressTextLength } from '../limits.ts';
import type { StoredEvent } from '../events/event.ts';
import type { Store } from '../store/store.ts';
import { draft, readyHost } from '../store/testing/fixtures.ts';
import { TestStores } from '../store/testing/stores.ts';
import { storeHostEvents } from './host-events.ts';
import { HostLink, type ConnectCall } from './host-link.ts';

const stores = new TestStores('sqlite');
let store: Store;
let clock: FakeClock;
let from: HostLink;
let own: SandboxId;

beforeAll(() => stores.start());
afterAll(() => stores.stop());
beforeEach(async () => {
  clock = new FakeClock(1_000_000);
  store = await stores.open({ clock });
  const host = await readyHost(store);
  // This test sends nothing on the stream.
  from = new HostLink({} as ConnectCall, host.id, host.epoch, '127.0.0.1:1', 0);
  own = (await store.sandboxes.create(draft({ name: 'own' }))).id;
  await store.sandboxes.place(own, host.id);
});
afterEach(() => stores.closeAll());

function report(...events: readonly MessageInitShape<typeof link.HostEventSchema>[]): void {
  const frame = create(link.HostEventsSchema, { events: [...events] });
  storeHostEvents({ store, logger: silentLogger, clock }, from, frame);
}

async function stored(): Promise<readonly StoredEvent[]> {
  await from.storingEvents;
  return await store.events.after(0, 100, { kinds: ['network'] });
}

const denied = (sandboxId: string, host: string): MessageInitShape<typeof link.HostEventSchema> => ({
  sandboxId,
  event: { case: 'egressDenied', value: { host, port: 443, method: 'CONNECT', rule: 'no rule', count: 1 } },
});

it('the events of a host’s own sandboxes are stored, and those of others are dropped', async () => {
  const elsewhere = await store.sandboxes.create(draft());
  report(denied(own, 'a.example'), denied(elsewhere.id, 'b.example'), denied('no id', 'c.example'));
  expect((await stored()).map(({ subject, data }) => [subject, data['name'], data['host']])).toEqual([[own, 'own', 'a.example']]);
});

it('a sandbox that exceeds its hourly limit of events does not use up the limit of others', async () => {
  const other = (await store.sandboxes.create(draft({ name: 'other' }))).id;
  await store.sandboxes.place(other, from.hostId);
  const noise = Array.from({ length: hostEventsPerSandboxHour + 50 }, (_, i) => denied(own, `${i}.example`));
  report(...noise, denied(other, 'a.example'));
  await from.storingEvents;
  const counts = async (id: SandboxId): Promise<number> => (await store.events.after(0, 1_000, { kinds: ['network'], subject: id })).length;
  expect([await counts(own), await counts(other)]).toEqual([hostEventsPerSandboxHour, 1]);
  await clock.advance(3_600_000);
  report(denied(own, 'later.example'));
  await from.storingEvents;
  expect(await counts(own)).toBe(hostEventsPerSandboxHour + 1);
});

it('a frame without events does not keep later events from being stored', async () => {
  report();
  await from.storingEvents;
  report(denied(own, 'a.example'));
  expect(await stored()).toHaveLength(1);
});

it('overlong texts in an event are cut off', async () => {
  report(denied(own, 'x'.repeat(100_000)));
  const [event] = await stored();
  expect(String(event?.data['host'])).toHaveLength(maxEgressTextLength + 1);
});
