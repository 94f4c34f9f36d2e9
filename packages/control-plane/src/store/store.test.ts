import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { FakeClock, hasCode, newHostId, newSandboxId } from '@drover/foundation';
import { killGraceMs } from '@drover/spec';
import { hostState } from '../model/host.ts';
import { sandboxState } from '../model/state.ts';
import type { DesiredOptions, Store } from './index.ts';
import type { SandboxRow } from '../model/sandbox.ts';
import { draft, readyHost, registration, seen, smallRoom } from './testing/fixtures.ts';
import { TestStores } from './testing/stores.ts';

describe.each(['sqlite', 'postgres'] as const)('the store on %s', (kind) => {
  const stores = new TestStores(kind);
  let clock: FakeClock;
  let store: Store;
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    clock = new FakeClock(1_000_000);
    store = await stores.open({ clock });
  });
  afterEach(() => stores.closeAll());

  const types = async (subject: string): Promise<string[]> =>
    (await store.events.after(0, 1000, { subject })).map((event) =>
      event.type === 'SandboxStateChanged' ? `${String(event.data['from'])}->${String(event.data['to'])}` : event.type,
    );
  const get = async (row: { readonly id: SandboxRow['id'] }): Promise<SandboxRow> => {
    const found = await store.sandboxes.get(row.id);
    if (found === undefined) throw new Error(`no row ${row.id}`);
    return found;
  };
  const placed = async (
    hostId: Awaited<ReturnType<typeof readyHost>>['id'],
    options: Parameters<typeof draft>[0] = {},
  ): Promise<SandboxRow> => {
    const row = await store.sandboxes.create(draft(options));
    expect(await store.sandboxes.place(row.id, hostId)).toBe(true);
    return await get(row);
  };
  const running = async (host: Awaited<ReturnType<typeof readyHost>>, options: Parameters<typeof draft>[0] = {}): Promise<SandboxRow> => {
    const row = await placed(host.id, options);
    await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'RUNNING')]);
    return await get(row);
  };
  const reserved = async (hostId: Parameters<Store['hosts']['get']>[0]): Promise<number[]> => {
    const row = await store.hosts.get(hostId);
    return row === undefined ? [] : [row.reserved.cpuMillis, row.reserved.slots];
  };

  describe('hosts', () => {
    it('L-7: a join inserts a host, and a repeated join updates it in place', async () => {
      const id = newHostId();
      await store.hosts.join({ id, name: 'one', labels: { zone: 'a' }, certificateExpiresAt: 5 });
      await store.hosts.join({ id, name: 'two', labels: { zone: 'b' }, certificateExpiresAt: 6 });
      const [row, ...others] = await store.hosts.list();
      expect(others).toEqual([]);
      expect(row).toMatchObject({ id, name: 'two', labels: { zone: 'b' }, certificateExpiresAt: 6, epoch: 0 });
      expect(await types(id)).toEqual(['HostJoined']);
    });

    it('L-7: the labels of the join token override those that the host reports', async () => {
      const id = newHostId();
      await store.hosts.join({ id, name: 'one', labels: { trust: 'low' }, certificateExpiresAt: 5 });
      await store.hosts.register(registration(id, { labels: { trust: 'high', disk: 'ssd' } }), 'r');
      expect((await store.hosts.get(id))?.labels).toEqual({ trust: 'low', disk: 'ssd' });
    });

    it('L-11: a late end of an older stream does not mark the newer one down', async () => {
      const { id, epoch } = await readyHost(store);
      const { epoch: newer } = await store.hosts.register(registration(id), 'replica-2');
      expect(newer).toBeGreaterThan(epoch);
      expect(await store.hosts.markDown(id, epoch, 'dropped')).toBe(false);
      expect(await store.hosts.get(id)).toMatchObject({ connected: true, owner: 'replica-2' });
      expect(await store.hosts.markDown(id, newer, 'dropped')).toBe(true);
      expect(await store.hosts.get(id)).toMatchObject({ connected: false, owner: '', downReason: 'dropped' });
    });

    it('L-9: a heartbeat makes a silent host ready again and leaves its cordon alone', async () => {
      const { id, epoch } = await readyHost(store);
      await store.hosts.setScheduling(id, 'cordoned');
      await store.hosts.markDown(id, epoch, 'silent');
      await clock.advance(10);
      await store.hosts.heartbeats([{ id, epoch, at: clock.now(), loadMilli: 1500, memoryAvailableBytes: 7, diskAvailableBytes: 7 }]);
      const row = await store.hosts.get(id);
      expect(row).toMatchObject({
        connected: true,
        scheduling: 'cordoned',
        loadMilli: 1500,
        memoryAvailableBytes: 7,
        diskAvailableBytes: 7,
        owner: 'replica-1',
      });
      expect(row === undefined ? '' : hostState(row)).toBe('cordoned');
      expect(await types(id)).toEqual(['HostJoined', 'HostReady', 'HostCordoned', 'HostDown', 'HostReady']);
    });

    it('L-11: heartbeats of an older epoch, or received before the stream dropped, change nothing', async () => {
      const { id, epoch } = await readyHost(store);
      const at = clock.now();
      await store.hosts.markDown(id, epoch, 'dropped');
      await store.hosts.heartbeats([{ id, epoch, at, loadMilli: 1, memoryAvailableBytes: 1, diskAvailableBytes: 1 }]);
      expect((await store.hosts.get(id))?.connected).toBe(false);
      await store.hosts.register(registration(id), 'replica-2');
      await store.hosts.heartbeats([{ id, epoch, at: at + 99, loadMilli: 9, memoryAvailableBytes: 9, diskAvailableBytes: 9 }]);
      expect((await store.hosts.get(id))?.loadMilli).toBe(1);
    });

    it('one call stores the heartbeats of 1,200 hosts', async () => {
      const ids = Array.from({ length: 3 }, () => newHostId());
      for (const id of ids) {
        await store.hosts.join({ id, name: id, labels: {}, certificateExpiresAt: 5 });
        await store.hosts.register(registration(id), 'r');
      }
      const beats = Array.from({ length: 1200 }, (_, i) => ({
        id: ids[i] ?? newHostId(),
        epoch: 1,
        at: 2e6,
        loadMilli: i,
        memoryAvailableBytes: 1,
        diskAvailableBytes: 1,
      }));
      await store.hosts.heartbeats(beats);
      expect((await store.hosts.list()).map((host) => host.loadMilli).sort((a, b) => a - b)).toEqual([0, 1, 2]);
    });

    it('L-8: `reserved` is rebuilt from the placed and the reported sandboxes, each counted once', async () => {
      const host = await readyHost(store);
      const here = await running(host);
      await placed(host.id);
      const elsewhere = await store.sandboxes.create(draft());
      expect(await reserved(host.id)).toEqual([800, 2]);
      await store.hosts.register(registration(host.id, { sandboxes: [seen(here, 'RUNNING'), seen(elsewhere, 'RUNNING')] }), 'r');
      expect(await reserved(host.id)).toEqual([1200, 3]);
      expect(await store.sandboxes.copyAbsent(elsewhere.id, host.id)).toBeUndefined();
      expect(await reserved(host.id)).toEqual([800, 2]);
    });

    it('L-4: a removed host is refused from then on', async () => {
      const { id } = await readyHost(store, { hostname: 'alpha' });
      await store.hosts.remove(id, { force: false });
      await expect(store.hosts.register(registration(id), 'r')).rejects.toMatchObject({ code: 'host-removed' });
      await expect(store.hosts.join({ id, name: 'x', labels: {}, certificateExpiresAt: 1 })).rejects.toMatchObject({
        code: 'host-removed',
      });
      await expect(store.hosts.find('alpha')).rejects.toMatchObject({ code: 'host-not-found' });
      expect(await store.hosts.list()).toEqual([]);
      expect((await store.hosts.list({ includeRemoved: true })).map((row) => row.id)).toEqual([id]);
    });

    it('L-4: a host with sandboxes is removed only by force; they are lost immediately, and can be deleted', async () => {
      const host = await readyHost(store);
      const row = await running(host);
      await expect(store.hosts.remove(host.id, { force: false })).rejects.toMatchObject({ code: 'host-not-empty' });
      await store.hosts.remove(host.id, { force: true });
      expect(sandboxState(await get(row)).state).toBe('lost');
      expect(sandboxState(await store.sandboxes.setDesired(row.id, 'deleted')).state).toBe('deleted');
    });

    it('finds by name, and numbers another host of the same name', async () => {
      const one = await readyHost(store, { hostname: 'alpha' });
      expect((await store.hosts.find('alpha')).id).toBe(one.id);
      const [two, three] = [await readyHost(store, { hostname: 'alpha' }), await readyHost(store, { hostname: 'alpha' })];
      expect((await store.hosts.find('alpha-2')).id).toBe(two.id);
      expect((await store.hosts.find('alpha-3')).id).toBe(three.id);
      // Each keeps its name while the first has its own.
      for (const [host, name] of [
        [one, 'alpha'],
        [three, 'alpha-3'],
        [two, 'alpha-2'],
      ] as const) {
        await store.hosts.register(registration(host.id, { hostname: 'alpha' }), 'replica-1');
        expect((await store.hosts.find(name)).id).toBe(host.id);
      }
      await store.hosts.register(registration(two.id, { hostname: 'beta' }), 'replica-1');
      expect((await store.hosts.find('beta')).id).toBe(two.id);
      await store.hosts.remove(one.id, { force: true });
      await store.hosts.register(registration(three.id, { hostname: 'alpha' }), 'replica-1');
      expect((await store.hosts.find('alpha')).id).toBe(three.id);
    });

    it('L-29: a restarted replica marks down the hosts that it owned, and no others', async () => {
      const mine = await readyHost(store);
      const other = newHostId();
      await store.hosts.join({ id: other, name: 'other', labels: {}, certificateExpiresAt: 1 });
      await store.hosts.register(registration(other), 'replica-2');
      expect(await store.hosts.markOwnedDown('replica-1')).toBe(1);
      expect((await store.hosts.get(mine.id))?.connected).toBe(false);
      expect((await store.hosts.get(other))?.connected).toBe(true);
    });
  });

  describe('sandboxes', () => {
    it('keeps the specification unchanged', async () => {
      const given = draft({
        labels: { team: 'a' },
        spec: { image: 'alpine', command: ['sh', '-c', 'true'], resources: { memoryBytes: 2n ** 40n }, hostLabels: { disk: 'ssd' } },
      });
      await store.sandboxes.create(given);
      const row = await get(given);
      expect(row.spec).toEqual(given.spec);
      expect(row).toMatchObject({ desired: 'running', generation: 1, labels: { team: 'a' }, createdAt: clock.now() });
    });

    it('refuses a name that is taken until its sandbox is deleted', async () => {
      const first = await store.sandboxes.create(draft({ name: 'web' }));
      await expect(store.sandboxes.create(draft({ name: 'web' }))).rejects.toMatchObject({ code: 'name-taken' });
      await store.sandboxes.create(draft({ name: 'web', project: 'p' }));
      await store.sandboxes.setDesired(first.id, 'deleted');
      await store.sandboxes.create(draft({ name: 'web' }));
    });

    it('finds by id, name and project/name; deleted ones by id only', async () => {
      const plain = await store.sandboxes.create(draft({ name: 'web' }));
      const inProject = await store.sandboxes.create(draft({ name: 'web', project: 'p' }));
      expect((await store.sandboxes.find('web')).id).toBe(plain.id);
      expect((await store.sandboxes.find('p/web')).id).toBe(inProject.id);
      await store.sandboxes.setDesired(plain.id, 'deleted');
      expect((await store.sandboxes.find('web')).id).toBe(inProject.id);
      expect((await store.sandboxes.find(plain.id)).deletedAt).toBeDefined();
      await expect(store.sandboxes.find('nothing')).rejects.toMatchObject({ code: 'sandbox-not-found' });
      await store.sandboxes.create(draft({ name: 'web', project: 'q' }));
      await expect(store.sandboxes.find('web')).rejects.toMatchObject({ code: 'invalid-argument' });
    });

    it('lists by project, labels, host and page', async () => {
      const host = await readyHost(store);
      const a = await placed(host.id, { project: 'p', labels: { team: 'a', tier: '1' } });
      await clock.advance(1);
      const b = await store.sandboxes.create(draft({ project: 'p', labels: { team: 'b' } }));
      await clock.advance(1);
      const c = await store.sandboxes.create(draft({ labels: { team: 'a' } }));
      const ids = async (filter: Parameters<Store['sandboxes']['list']>[0]): Promise<string[]> =>
        (await store.sandboxes.list(filter)).map((row) => row.id);
      expect(await ids({})).toEqual([a.id, b.id, c.id]);
      expect(await ids({ project: 'p' })).toEqual([a.id, b.id]);
      expect(await ids({ project: '' })).toEqual([c.id]);
      expect(await ids({ labels: { team: 'a' } })).toEqual([a.id, c.id]);
      expect(await ids({ labels: { team: 'a', tier: '1' } })).toEqual([a.id]);
      expect(await ids({ hostId: host.id })).toEqual([a.id]);
      expect(await ids({ limit: 2 })).toEqual([a.id, b.id]);
      expect(await ids({ limit: 2, after: b })).toEqual([c.id]);
      await store.sandboxes.setDesired(c.id, 'deleted');
      expect(await ids({})).toEqual([a.id, b.id]);
      expect(await ids({ includeDeleted: true })).toHaveLength(3);
    });

    it('L-22: a repeated request changes nothing; any other one raises the generation', async () => {
      const row = await store.sandboxes.create(draft());
      expect((await store.sandboxes.setDesired(row.id, 'running')).generation).toBe(1);
      expect((await store.sandboxes.setDesired(row.id, 'paused')).generation).toBe(2);
      expect((await store.sandboxes.setDesired(row.id, 'paused')).generation).toBe(2);
      expect((await store.sandboxes.setDesired(row.id, 'stopped', { graceMs: 7 })).stopGraceMs).toBe(7);
    });

    it('I-4: a stop under way can become shorter, never longer; an ended sandbox keeps its outcome', async () => {
      const host = await readyHost(store);
      const row = await running(host);
      const wish = async (options: DesiredOptions): Promise<[number, number]> => {
        const { generation, stopGraceMs } = await store.sandboxes.setDesired(row.id, 'stopped', options);
        return [generation, stopGraceMs];
      };
      expect(await wish({ graceMs: 0 })).toEqual([2, 0]);
      expect(await wish({ graceMs: 60_000 })).toEqual([3, 60_000]);
      expect(await wish({ graceMs: 60_000 })).toEqual([3, 60_000]);
      expect(await wish({ graceMs: 90_000 })).toEqual([3, 60_000]);
      expect(await wish({ graceMs: 0 })).toEqual([3, 60_000]);
      expect(await wish({ kill: true })).toEqual([4, killGraceMs]);
      expect(await wish({ kill: true })).toEqual([4, killGraceMs]);
      expect(await wish({ graceMs: 1 })).toEqual([4, killGraceMs]);
      expect((await types(row.id)).filter((type) => type === 'SandboxDesiredChanged')).toHaveLength(3);

      await store.sandboxes.observe(host.id, host.epoch, [seen(await get(row), 'STOPPED')]);
      expect(await store.sandboxes.setDesired(row.id, 'running', { graceMs: 60_000 })).toMatchObject({ stopGraceMs: 60_000 });
      await store.sandboxes.observe(host.id, host.epoch, [seen(await get(row), 'RUNNING', { startCount: 2n })]);
      await store.sandboxes.setDesired(row.id, 'stopped', { graceMs: 60_000 });
      await store.sandboxes.observe(host.id, host.epoch, [seen(await get(row), 'STOPPED', { startCount: 2n })]);
      const ended = await get(row);
      expect(await store.sandboxes.setDesired(row.id, 'stopped', { kill: true })).toEqual(ended);
    });

    it('I-4: a change of the observed network is an event', async () => {
      const host = await readyHost(store);
      const row = await running(host);
      for (const networkCut of [false, true, true, false]) {
        await store.sandboxes.observe(host.id, host.epoch, [seen(await get(row), 'RUNNING', { networkCut })]);
      }
      const told = (await types(row.id)).filter((type) => type.startsWith('SandboxNetwork'));
      expect(told).toEqual(['SandboxNetworkCut', 'SandboxNetworkRestored']);
    });

    it('L-25: the displayed states and events of a whole life', async () => {
      const host = await readyHost(store);
      const row = await placed(host.id);
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'PREPARING')]);
      await store.sandboxes.observe(host.id, host.epoch, [seen(await get(row), 'RUNNING')]);
      await store.sandboxes.observe(host.id, host.epoch, [seen(await get(row), 'STOPPED', { exitCode: 3, reason: 'exited' })]);
      expect(await get(row)).toMatchObject({ observed: 'stopped', exitCode: 3, reason: 'exited' });
      await store.sandboxes.setDesired(row.id, 'deleted');
      await store.sandboxes.copyAbsent(row.id, host.id);
      expect(await types(row.id)).toEqual([
        'SandboxCreated',
        'pending->scheduled',
        'SandboxScheduled',
        'scheduled->preparing',
        'preparing->running',
        'running->stopped',
        'stopped->deleting',
        'SandboxDesiredChanged',
        'deleting->deleted',
        'SandboxDeleted',
      ]);
      expect(await get(row)).toMatchObject({ exitCode: 3 });
    });

    it('L-26: an observation counts if it is newer than the last, from the placed host and its newest stream', async () => {
      const host = await readyHost(store);
      const other = await readyHost(store);
      const row = await running(host);
      const stopped = seen(row, 'STOPPED');
      expect(await store.sandboxes.observe(other.id, other.epoch, [stopped])).toEqual([]);
      expect(await store.sandboxes.observe(host.id, host.epoch - 1, [stopped])).toEqual([]);
      expect(await store.sandboxes.observe(host.id, host.epoch, [{ ...stopped, sequence: 1n }])).toEqual([]);
      expect(await store.sandboxes.observe(host.id, host.epoch, [stopped])).toHaveLength(1);
    });

    it('L-8: the full report of an agent that lost its state directory is accepted with lower sequences', async () => {
      const host = await readyHost(store);
      const row = await running(host);
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'PAUSED', { sequence: 40n })]);
      const { epoch } = await store.hosts.register(registration(host.id, { sandboxes: [seen(row, 'RUNNING', { sequence: 1n })] }), 'r');
      expect(await get(row)).toMatchObject({ observed: 'running', observedSequence: 1 });
      expect(await store.sandboxes.observe(host.id, epoch, [seen(row, 'STOPPED', { sequence: 2n })])).toHaveLength(1);
    });

    it('a stopped sandbox keeps its host and its slot, and releases its CPU and memory', async () => {
      const host = await readyHost(store);
      const row = await running(host);
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'STOPPED')]);
      expect(await get(row)).toMatchObject({ hostId: host.id });
      expect(await reserved(host.id)).toEqual([0, 1]);
      const again = await store.sandboxes.setDesired(row.id, 'running');
      expect(again).toMatchObject({ generation: 2, startGeneration: 2, pendingReason: '' });
      expect(await reserved(host.id)).toEqual([400, 1]);
      // A late observation of the ended run does not release the reservation of the new start.
      await store.sandboxes.observe(host.id, host.epoch, [seen({ ...again, generation: 1 }, 'STOPPED')]);
      expect(await reserved(host.id)).toEqual([400, 1]);
    });

    it('a stopped sandbox whose host is full waits for room there, as pending', async () => {
      const host = await readyHost(store, { cpuMillis: 400 });
      const row = await running(host);
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'STOPPED')]);
      const other = await placed(host.id);
      const again = await store.sandboxes.setDesired(row.id, 'running');
      expect(sandboxState(again)).toMatchObject({ state: 'pending', reason: 'unschedulable' });
      expect((await store.sandboxes.unplaced(10)).map((waiting) => waiting.id)).toEqual([row.id]);
      expect(await store.sandboxes.place(row.id, host.id)).toBe(false);
      await store.sandboxes.setDesired(other.id, 'deleted');
      await store.sandboxes.copyAbsent(other.id, host.id);
      expect(await store.sandboxes.place(row.id, host.id)).toBe(true);
      expect(sandboxState(await get(row)).state).toBe('scheduled');
      expect(await reserved(host.id)).toEqual([400, 1]);
    });

    it('--rm: a sandbox is due for removal some time after its run ended; until then its output can be read', async () => {
      const host = await readyHost(store);
      const row = await running(host, { spec: { image: 'host', removeOnExit: true } });
      const other = await running(host, { spec: { image: 'host', env: [{ name: 'A', value: '"removeOnExit":true' }] } });
      expect(await store.sandboxes.finished(Number.MAX_SAFE_INTEGER)).toEqual([]);
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'STOPPED', { exitCode: 4 }), seen(other, 'STOPPED')]);
      const ended = await get(row);
      expect(ended).toMatchObject({ desired: 'running', exitCode: 4 });
      expect(await store.sandboxes.finished(ended.updatedAt - 1)).toEqual([]);
      expect((await store.sandboxes.finished(ended.updatedAt)).map(({ id }) => id)).toEqual([row.id]);
      await store.sandboxes.setDesired(row.id, 'running');
      expect(await store.sandboxes.finished(Number.MAX_SAFE_INTEGER)).toEqual([]);
    });

    it('a start that the control plane gave up stays failed, and keeps its reservation until its copy has ended', async () => {
      const host = await readyHost(store);
      const row = await running(host);
      await store.sandboxes.fail(row.id, { reason: 'init-failed', message: 'post-init exited with 1', hint: '' });
      await store.sandboxes.observe(host.id, host.epoch, [seen(await get(row), 'RUNNING')]);
      expect(sandboxState(await get(row))).toEqual({
        state: 'failed',
        reason: 'init-failed',
        message: 'post-init exited with 1',
        hint: '',
      });
      expect(await reserved(host.id)).toEqual([400, 1]);
      await store.sandboxes.observe(host.id, host.epoch, [seen(await get(row), 'STOPPED')]);
      expect(sandboxState(await get(row))).toMatchObject({ state: 'failed', reason: 'init-failed' });
      expect(await reserved(host.id)).toEqual([0, 1]);
    });

    it('a missing copy fails its sandbox, which can then be started on any host', async () => {
      const host = await readyHost(store);
      const row = await running(host);
      expect(await store.sandboxes.copyAbsent(row.id, host.id)).toMatchObject({
        observed: 'failed',
        reason: 'copy-lost',
        hostId: undefined,
      });
      expect(await reserved(host.id)).toEqual([0, 0]);
      expect(await store.sandboxes.unplaced(10)).toEqual([]);
      await store.sandboxes.setDesired(row.id, 'running');
      expect(await store.sandboxes.unplaced(10)).toHaveLength(1);
      expect(await store.sandboxes.place(row.id, host.id)).toBe(true);
    });

    it('L-26: the sandboxes of a host that is down longer than the grace are lost; those that still run are adopted', async () => {
      const host = await readyHost(store);
      const row = await running(host);
      const over = await running(host);
      await store.sandboxes.observe(host.id, host.epoch, [seen(over, 'STOPPED')]);
      await store.hosts.markDown(host.id, host.epoch, 'dropped');
      expect(await store.sandboxes.markLost(clock.now() - 1)).toEqual([]);
      await clock.advance(60_000);
      expect((await store.sandboxes.markLost(clock.now() - 60_000)).map((lost) => lost.id)).toEqual([row.id]);
      expect(sandboxState(await get(row)).state).toBe('lost');
      expect(sandboxState(await get(over)).state).toBe('stopped');
      await store.hosts.register(registration(host.id, { sandboxes: [seen(row, 'RUNNING'), seen(over, 'STOPPED')] }), 'r');
      expect(await get(row)).toMatchObject({ observed: 'running', lostSince: undefined, startGeneration: 1 });
      expect((await types(row.id)).slice(-4)).toEqual(['running->lost', 'SandboxLost', 'lost->running', 'SandboxAdopted']);
    });

    it('I-4: a sandbox contained by a pause is not moved, and a contained sandbox is not removed on its exit', async () => {
      const host = await readyHost(store);
      const row = await running(host, { spec: { image: 'host', removeOnExit: true } });
      await store.sandboxes.setDesired(row.id, 'paused');
      await store.sandboxes.setContainment(row.id, 'pause', { by: 'admin', at: 0, reason: '' });
      expect(await store.sandboxes.unplace(row.id, host.id, 'draining')).toBe(false);
      await store.sandboxes.observe(host.id, host.epoch, [seen(await get(row), 'STOPPED')]);
      expect(await store.sandboxes.finished(Number.MAX_SAFE_INTEGER)).toEqual([]);
      await store.sandboxes.setContainment(row.id, 'pause', undefined);
      expect((await store.sandboxes.finished(Number.MAX_SAFE_INTEGER)).map(({ id }) => id)).toEqual([row.id]);
    });

    it('L-26: observations of a stale copy are ignored, also after the sandbox moves back', async () => {
      const host = await readyHost(store);
      const row = await running(host);
      expect(await store.sandboxes.unplace(row.id, newHostId(), 'draining')).toBe(false);
      expect(await store.sandboxes.unplace(row.id, host.id, 'draining')).toBe(true);
      // The stale copy keeps its room reserved until it is fenced.
      expect(await reserved(host.id)).toEqual([400, 1]);
      await store.sandboxes.place(row.id, host.id);
      expect(await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'RUNNING', { sequence: 99n })])).toEqual([]);
      expect(sandboxState(await get(row)).state).toBe('scheduled');
    });

    it('emits one event with the reason why a sandbox cannot be placed', async () => {
      const row = await store.sandboxes.create(draft());
      await store.sandboxes.setPending(row.id, 'unschedulable', 'no host');
      await store.sandboxes.setPending(row.id, 'unschedulable', 'no host at all');
      expect(sandboxState(await get(row))).toEqual({ state: 'pending', reason: 'unschedulable', message: 'no host at all', hint: '' });
      expect(await types(row.id)).toEqual(['SandboxCreated', 'SandboxUnschedulable']);
    });

    it('L-24: concurrent placements never overcommit a host', async () => {
      const hosts = [await readyHost(store, { slots: 7 }), await readyHost(store, { slots: 5 })];
      const rows = await Promise.all(
        Array.from({ length: 40 }, () => store.sandboxes.create(draft({ room: { ...smallRoom, cpuMillis: 1 } }))),
      );
      const results = await Promise.all(
        rows.flatMap((row) => hosts.map(async (host) => ((await store.sandboxes.place(row.id, host.id)) ? host.id : undefined))),
      );
      expect(results.filter((id) => id === hosts[0]?.id)).toHaveLength(7);
      expect(results.filter((id) => id === hosts[1]?.id)).toHaveLength(5);
      for (const host of await store.hosts.list()) expect(host.reserved.slots).toBe(host.capacity.slots);
      expect(await store.sandboxes.unplaced(100)).toHaveLength(28);
    });

    it('L-24: creating with a host equals creating and then placing; it never overcommits, and the others wait', async () => {
      const hosts = [await readyHost(store, { slots: 7 }), await readyHost(store, { slots: 7 })] as const;
      const room = { ...smallRoom, cpuMillis: 1 };
      const made = await Promise.all(Array.from({ length: 20 }, () => store.sandboxes.create(draft({ room }), hosts[0].id)));
      const there = made.filter((row) => row.hostId === hosts[0].id);
      expect(there).toHaveLength(7);
      expect(await store.sandboxes.unplaced(100)).toHaveLength(13);
      const [one] = there;
      if (one === undefined) throw new Error('none was placed');
      const other = await placed(hosts[1].id, { room });
      expect(await get(one)).toEqual({ ...other, id: one.id, name: one.name, hostId: hosts[0].id });
      expect(await get(one)).toEqual(one);
      expect(await types(one.id)).toEqual(await types(other.id));
      expect(await reserved(hosts[0].id)).toEqual([7, 7]);
      expect(await reserved(hosts[1].id)).toEqual([1, 1]);
    });

    it('L-27: nothing new is placed on a host that is cordoned, draining or down', async () => {
      const host = await readyHost(store);
      const row = await store.sandboxes.create(draft());
      for (const scheduling of ['cordoned', 'draining'] as const) {
        await store.hosts.setScheduling(host.id, scheduling);
        expect(await store.sandboxes.place(row.id, host.id)).toBe(false);
      }
      await store.hosts.setScheduling(host.id, 'open');
      await store.hosts.markDown(host.id, host.epoch, 'dropped');
      expect(await store.sandboxes.place(row.id, host.id)).toBe(false);
    });

    it('R-20: lists the sandboxes that are past their TTL', async () => {
      const row = await store.sandboxes.create(draft({ spec: { image: 'host', ttlSeconds: 60n } }));
      await store.sandboxes.create(draft());
      expect(await store.sandboxes.expired(clock.now() + 59_999)).toEqual([]);
      expect((await store.sandboxes.expired(clock.now() + 60_000)).map((old) => old.id)).toEqual([row.id]);
    });

    it('a hundred concurrent requests and observations are each applied completely', async () => {
      const host = await readyHost(store, { slots: 100, cpuMillis: 100_000, memoryBytes: 2 ** 40 });
      const rows = await Promise.all(Array.from({ length: 25 }, () => placed(host.id)));
      await Promise.all(
        rows.flatMap((row) => [
          store.sandboxes.observe(host.id, host.epoch, [seen(row, 'RUNNING')]),
          store.sandboxes.setDesired(row.id, 'stopped').catch((error: unknown) => {
            // The request arrived after the one to delete.
            if (!hasCode(error, 'failed-precondition')) throw error;
          }),
          store.sandboxes.setDesired(row.id, 'deleted'),
          store.hosts.heartbeats([
            { id: host.id, epoch: host.epoch, at: clock.now(), loadMilli: 1, memoryAvailableBytes: 1, diskAvailableBytes: 1 },
          ]),
        ]),
      );
      await Promise.all(rows.map((row) => store.sandboxes.copyAbsent(row.id, host.id)));
      expect((await store.sandboxes.list({ includeDeleted: true, hostId: host.id })).map((row) => sandboxState(row).state)).toEqual(
        rows.map(() => 'deleted'),
      );
      expect(await reserved(host.id)).toEqual([0, 0]);
    });
  });

  describe('tokens', () => {
    it('L-1: a join token has a limited number of uses, and a host that lost the response may repeat its use', async () => {
      await store.tokens.createJoin({ hash: 'h', expiresAt: clock.now() + 10, uses: 1, labels: { zone: 'a' } });
      const host = newHostId();
      expect(await store.tokens.takeJoin('h', host)).toEqual({ labels: { zone: 'a' } });
      expect(await store.tokens.takeJoin('h', host)).toEqual({ labels: { zone: 'a' } });
      expect(await store.tokens.takeJoin('h', newHostId())).toBeUndefined();
      expect(await store.tokens.takeJoin('unknown', host)).toBeUndefined();
      await clock.advance(10);
      expect(await store.tokens.takeJoin('h', host)).toBeUndefined();
    });

    it('L-1: of ten concurrent hosts, three can use a token with three uses', async () => {
      await store.tokens.createJoin({ hash: 'h', expiresAt: clock.now() + 10, uses: 3, labels: {} });
      const taken = await Promise.all(Array.from({ length: 10 }, () => store.tokens.takeJoin('h', newHostId())));
      expect(taken.filter((labels) => labels !== undefined)).toHaveLength(3);
    });

    it('an API token is found by its hash', async () => {
      await store.tokens.createApi({ hash: 'x', name: 'admin' });
      expect(await store.tokens.findApi('x')).toEqual({ name: 'admin' });
      expect(await store.tokens.findApi('y')).toBeUndefined();
    });
  });

  describe('events', () => {
    it('I-35: ids rise in commit order, so a reader that follows them misses no event', async () => {
      const url = await stores.newUrl();
      const [writer, reader] = [await stores.open({ url }), await stores.open({ url })];
      const read: number[] = [];
      let writing = true;
      const reading = (async () => {
        for (let last = 0; ; ) {
          const done = !writing;
          const page = await reader.events.after(last, 50);
          for (const event of page) read.push(event.id);
          last = read.at(-1) ?? 0;
          if (done && page.length === 0) return;
          await new Promise((resolve) => {
            setImmediate(resolve);
          });
        }
      })();
      await Promise.all(Array.from({ length: 60 }, () => writer.sandboxes.create(draft())));
      writing = false;
      await reading;
      expect(read).toEqual(Array.from({ length: 60 }, (_, i) => i + 1));
    });

    it('retains the newest, and never assigns an id twice', async () => {
      const event = { kind: 'test', type: 'Tick', subject: 'x', data: {} };
      await store.events.append(Array.from({ length: 10 }, () => event));
      expect(await store.events.trim(3)).toBe(7);
      expect((await store.events.after(0, 10)).map((kept) => kept.id)).toEqual([8, 9, 10]);
      await store.events.trim(0);
      await store.events.append([event]);
      expect(await store.events.lastId()).toBe(11);
    });

    it('notifies listeners after the commit, and isolates a listener that throws', async () => {
      const heard: number[] = [];
      store.events.onAppend(() => {
        throw new Error('a bad listener');
      });
      const off = store.events.onAppend(() => heard.push(1));
      await store.events.append([{ kind: 'test', type: 'Tick', subject: 'x', data: { n: 1 } }]);
      await vi.waitFor(() => expect(heard.length).toBeGreaterThan(0));
      off();
    });
  });

  it("R-19: keeps a sandbox's secrets, sealed, until it is deleted", async () => {
    const host = await readyHost(store);
    const secrets = [
      { name: 'A', sealed: 'c2VhbGVk' },
      { name: 'B', sealed: 'bW9yZQ==' },
    ];
    const row = await store.sandboxes.create({ ...draft({ name: 'keeps' }), secrets });
    const other = await store.sandboxes.create({ ...draft(), secrets: secrets.slice(1) });
    await store.sandboxes.place(row.id, host.id);
    await store.sandboxes.setDesired(row.id, 'stopped');
    expect(await store.sandboxes.secrets(row.id)).toEqual(secrets);
    await store.sandboxes.setDesired(row.id, 'deleted');
    expect(await store.sandboxes.secrets(row.id)).toEqual(secrets);
    await store.sandboxes.copyAbsent(row.id, host.id);
    expect(await store.sandboxes.secrets(row.id)).toEqual([]);
    expect(await store.sandboxes.secrets(other.id)).toEqual(secrets.slice(1));
    // A sandbox without a host is deleted immediately.
    await store.sandboxes.setDesired(other.id, 'deleted');
    expect(await store.sandboxes.secrets(other.id)).toEqual([]);
  });

  it('reopens with all data, also in several processes concurrently', async () => {
    const url = await stores.newUrl();
    const first = await stores.open({ url });
    const row = await first.sandboxes.create(draft());
    await stores.closeAll();
    const second = await stores.open({ url });
    expect((await second.sandboxes.get(row.id))?.name).toBe(row.name);
    expect(await second.sandboxes.get(newSandboxId())).toBeUndefined();
    await Promise.all([stores.open({ url }), stores.open({ url })]);
  });
});
