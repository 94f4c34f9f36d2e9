import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { FakeClock, newHostId, type HostId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import type { HostRow } from '../model/host.ts';
import type { Store } from '../store/store.ts';
import { draft, readyHost, smallRoom } from '../store/testing/fixtures.ts';
import { TestStores } from '../store/testing/stores.ts';
import { Placement } from './placement.ts';
import { EventFeed } from '../feed/index.ts';
import { plan, type PlacementRequest } from './plan.ts';

const GiB = 1024 ** 3;
const room = (cpuMillis: number, gib: number, slots: number): HostRow['reserved'] => ({ cpuMillis, memoryBytes: gib * GiB, slots });

function host(change: Partial<HostRow> = {}): HostRow {
  return {
    id: newHostId(),
    name: 'alpha',
    scheduling: 'open',
    removedAt: undefined,
    labels: {},
    zone: '',
    capacity: {
      ...room(4e3, 8, 10),
      diskBytes: 100 * GiB,
    },
    reserved: room(0, 0, 0),
    runtimes: ['oci'],
    agentVersion: '',
    bootId: '',
    epoch: 1,
    owner: 'r',
    connected: true,
    downSince: undefined,
    downReason: '',
    lastSeenAt: 0,
    loadMilli: 0,
    memoryAvailableBytes: 0,
    diskAvailableBytes: 0,
    joinedAt: 0,
    certificateExpiresAt: 0,
    ...change,
  };
}
const request = (change: Partial<PlacementRequest> = {}): PlacementRequest => ({
  room: room(1000, 1, 1),
  diskBytes: 0,
  runtime: '',
  labels: {},
  host: '',
  ...change,
});

describe('L-24: planning a placement', () => {
  const refusals: readonly [string, Partial<HostRow>, Partial<PlacementRequest>, string][] = [
    ['down', { connected: false }, {}, 'it is down'],
    ['cordoned', { scheduling: 'cordoned' }, {}, 'it is cordoned'],
    ['draining', { scheduling: 'draining' }, {}, 'it is draining'],
    ['joining', { epoch: 0, capacity: { ...room(0, 0, 0), diskBytes: 0 } }, {}, 'it has not connected yet'],
    ['without the label', { labels: { disk: 'hdd' } }, { labels: { disk: 'ssd' } }, 'it does not carry the label disk=ssd'],
    ['without the runtime', {}, { runtime: 'microvm' }, 'it has no microvm runtime'],
    ['not the requested one', {}, { host: 'beta' }, 'another host was asked for'],
    ['out of CPUs', { reserved: room(3500, 0, 0) }, {}, 'it has free 0.5 CPUs of the 1 wanted'],
    ['out of memory', { reserved: room(0, 7.5, 0) }, {}, 'it has free 512 MiB of memory of the 1.0 GiB wanted'],
    ['out of slots', { reserved: room(0, 0, 10) }, {}, 'it has no place for another sandbox'],
    ['over its capacity', { reserved: room(9000, 0, 0) }, {}, 'it has free 0 CPUs of the 1 wanted'],
  ];
  it.each(refusals)('a host that is %s is not chosen, with the reason', (_, row, asked, why) => {
    expect(plan([host(row)], request(asked))).toMatchObject({ kind: 'unschedulable', why: [{ host: 'alpha', why }] });
  });

  it('without a host, a sandbox waits, and the message explains how to join one', () => {
    expect(plan([], request())).toMatchObject({ kind: 'unschedulable', message: expect.stringContaining('drover host token') as string });
    expect(plan([host({ removedAt: 1 })], request()).kind).toBe('unschedulable');
  });

  it('a sandbox larger than every host is impossible; if a larger host is down, it waits', () => {
    const large = request({ room: room(8000, 1, 1) });
    expect(plan([host(), host({ name: 'beta' })], large)).toMatchObject({
      kind: 'impossible',
      message: expect.stringContaining('beta') as string,
    });
    expect(plan([host()], request({ diskBytes: 100 * GiB }))).toMatchObject({ kind: 'host' });
    expect(plan([host()], request({ diskBytes: 101 * GiB }))).toMatchObject({
      kind: 'impossible',
      message: 'it is larger than every host (alpha: it has 100 GiB of disk of the 101 GiB wanted)',
    });
    const down = host({ connected: false, capacity: { ...room(16_000, 8, 10), diskBytes: 0 } });
    expect(plan([host(), down], large).kind).toBe('unschedulable');
  });

  it('spreads to the least reserved host, and breaks ties by id', () => {
    const [a, b] = [host({ id: 'h-a' as HostId }), host({ id: 'h-b' as HostId })];
    expect(plan([b, a], request())).toEqual({ kind: 'host', hostId: 'h-a' });
    expect(plan([{ ...a, reserved: room(0, 4, 1) }, b], request())).toEqual({ kind: 'host', hostId: 'h-b' });
  });

  it('a restart uses only the host with the files, cordoned or not, and counts its own slot once', () => {
    const full = host({ scheduling: 'cordoned', reserved: room(0, 0, 10) });
    expect(plan([full, host()], request({ onHost: full.id }))).toEqual({ kind: 'host', hostId: full.id });
  });

  it('never chooses a host without room, whatever the snapshot', () => {
    const amount = fc.integer({ min: 0, max: 5000 });
    const hosts = fc.array(
      fc.record({ cpu: amount, used: amount, open: fc.boolean(), up: fc.boolean() }).map(({ cpu, used, open, up }) =>
        host({
          capacity: { ...room(cpu, 8, 10), diskBytes: 0 },
          reserved: room(used, 0, 0),
          scheduling: open ? 'open' : 'cordoned',
          connected: up,
        }),
      ),
    );
    fc.assert(
      fc.property(hosts, fc.integer({ min: 1, max: 5000 }), (rows, cpuMillis) => {
        const decision = plan(rows, request({ room: room(cpuMillis, 0, 0) }));
        const fitting = rows.filter(
          (row) => row.connected && row.scheduling === 'open' && row.capacity.cpuMillis - row.reserved.cpuMillis >= cpuMillis,
        );
        if (decision.kind === 'host') expect(fitting.map((row) => row.id)).toContain(decision.hostId);
        else expect(fitting).toEqual([]);
      }),
    );
  });
});

describe.each(['sqlite', 'postgres'] as const)('L-24: placing on %s', (kind) => {
  const stores = new TestStores(kind);
  let clock: FakeClock;
  let store: Store;
  let placement: Placement;
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    clock = new FakeClock(1000);
    store = await stores.open({ clock });
    placement = new Placement({ store, clock, logger: silentLogger });
  });
  afterEach(() => stores.closeAll());

  it('two replicas that concurrently place more than fits place exactly what fits', async () => {
    await readyHost(store, { slots: 6, hostname: 'alpha' });
    await readyHost(store, { slots: 4, hostname: 'beta' });
    const second = new Placement({ store, clock, logger: silentLogger });
    const rows = await Promise.all(
      Array.from({ length: 16 }, () => store.sandboxes.create(draft({ room: { ...smallRoom, cpuMillis: 10 } }))),
    );
    await Promise.all(rows.flatMap((row) => [placement.placeNow(row.id), second.placeNow(row.id)]));
    const now = await store.sandboxes.list();
    expect(now.filter((row) => row.hostId !== undefined)).toHaveLength(10);
    const waiting = now.filter((row) => row.hostId === undefined);
    expect(new Set(waiting.map((row) => row.pendingReason))).toEqual(new Set(['unschedulable']));
    expect(waiting[0]?.pendingMessage).toBe(
      'no host can take it now (alpha: it has no place for another sandbox; beta: it has no place for another sandbox)',
    );
  });

  it('waiting sandboxes are placed when a host joins, without another request', async () => {
    const row = await placement.placeNow((await store.sandboxes.create(draft())).id);
    expect(row).toMatchObject({ hostId: undefined, pendingReason: 'unschedulable' });
    const stop = new AbortController();
    const feed = await EventFeed.open(store.events, clock, silentLogger);
    const running = placement.run(feed, stop.signal);
    await clock.advance(200);
    const { id } = await readyHost(store);
    for (let i = 0; i < 100 && (await store.sandboxes.get(row.id))?.hostId === undefined; i++) await clock.advance(200);
    expect(await store.sandboxes.get(row.id)).toMatchObject({ hostId: id, pendingReason: '' });
    stop.abort();
    await running;
    await feed.close();
  });
});
