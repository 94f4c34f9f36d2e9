import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { DroverError, FakeClock, newHostId, newSandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { removeOnExitMs, upkeepMs } from '../limits.ts';
import { EventFeed } from '../feed/index.ts';
import { Placement } from '../placement/index.ts';
import { SecretBox } from '../secrets/index.ts';
import { sandboxState } from '../model/state.ts';
import type { SandboxRow } from '../model/sandbox.ts';
import type { Store } from '../store/store.ts';
import { draft, smallRoom } from '../store/testing/fixtures.ts';
import { TestStores } from '../store/testing/stores.ts';
import { drainHost, type DrainProgress } from './drain.ts';
import { Reconciler } from './reconciler.ts';
import { FakeHost, FakeHub } from './testing/fake-hub.ts';
import { Upkeep } from './upkeep.ts';

describe('the reconciler, on a real store and simulated hosts', () => {
  const stores = new TestStores('sqlite');
  let clock: FakeClock;
  let store: Store;
  let hub: FakeHub;
  let feed: EventFeed;
  let reconciler: Reconciler;
  let placement: Placement;
  let gone: string[];
  let secrets: SecretBox;
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    clock = new FakeClock(1_000_000);
    store = await stores.open({ clock });
    hub = new FakeHub(store);
    gone = [];
    secrets = new SecretBox(randomBytes(32));
    feed = await EventFeed.open(store.events, clock, silentLogger);
    reconciler = new Reconciler({
      store,
      hub,
      feed,
      secrets,
      clock,
      logger: silentLogger,
      random: () => 1,
      onAbsent: (id) => gone.push(id),
    });
    reconciler.attach();
    placement = new Placement({ store, clock, logger: silentLogger });
  });
  afterEach(async () => {
    await reconciler.close();
    await feed.close();
    await stores.closeAll();
  });

  const joined = async (options: Parameters<FakeHub['connect']>[1] = {}): Promise<FakeHost> => {
    const host = new FakeHost(newHostId());
    await store.hosts.join({ id: host.id, name: host.id.slice(0, 6), labels: {}, certificateExpiresAt: 1 });
    await hub.connect(host, options);
    return host;
  };
  const create = async (options: Parameters<typeof draft>[0] = {}): Promise<SandboxRow> =>
    await placement.placeNow((await store.sandboxes.create(draft(options))).id);
  const state = async (row: SandboxRow): Promise<string> => {
    const now = await store.sandboxes.get(row.id);
    return now === undefined ? 'none' : sandboxState(now).state;
  };
  /** Waits for a condition. Only the test advances the clock. */
  const until = async (condition: () => Promise<boolean> | boolean): Promise<void> => {
    await vi.waitUntil(condition, { interval: 1 });
  };
  const becomes = async (row: SandboxRow, wanted: string): Promise<void> => {
    await until(async () => (await state(row)) === wanted).catch(async () => expect(await state(row)).toBe(wanted));
  };
  /** Lets all pending work finish. */
  const settle = async (): Promise<void> => {
    for (let i = 0; i < 20; i++) await clock.advance(0);
  };

  it('L-22: drives a sandbox through its desired states, one command each', async () => {
    const host = await joined();
    const row = await create();
    await becomes(row, 'running');
    await store.sandboxes.setDesired(row.id, 'paused');
    await becomes(row, 'paused');
    await store.sandboxes.setDesired(row.id, 'running');
    await becomes(row, 'running');
    await store.sandboxes.setDesired(row.id, 'stopped');
    await becomes(row, 'stopped');
    await store.sandboxes.setDesired(row.id, 'running');
    await becomes(row, 'running');
    await store.sandboxes.setDesired(row.id, 'deleted');
    await becomes(row, 'deleted');
    expect(host.commands.map((command) => command.split(' ')[0])).toEqual(['create', 'pause', 'resume', 'stop', 'start', 'destroy']);
    expect(host.copies.size).toBe(0);
    expect(gone).toEqual([row.id]);
    expect((await store.hosts.get(host.id))?.reserved).toEqual({ cpuMillis: 0, memoryBytes: 0, slots: 0 });
  });

  it('the setup of a sandbox is for its init only, and is not sent to the host', async () => {
    const host = await joined();
    const carried: unknown[] = [];
    host.before = (operation) => {
      if (operation.case === 'create') carried.push(operation.value.spec);
    };
    const setup = { postInit: 'make', files: [{ path: 'a', source: { case: 'content' as const, value: 'text' } }] };
    const plan = draft({ spec: { image: 'host', allow: ['a.example'], setup } });
    const row = await placement.placeNow((await store.sandboxes.create(plan)).id);
    await becomes(row, 'running');
    expect(carried).toEqual([{ ...row.spec, setup: undefined }]);
    expect((await store.sandboxes.get(row.id))?.spec.setup?.postInit).toBe('make');
  });

  it('R-19: each start carries the secrets, and no secret that cannot be decrypted is sent', async () => {
    const host = await joined();
    const carried: string[][] = [];
    host.before = (operation) => {
      if (operation.case !== 'create' && operation.case !== 'start') return;
      carried.push(operation.value.secrets.map(({ name, value }) => `${name}=${Buffer.from(value).toString()}`));
    };
    const plan = draft({ spec: { secrets: [{ name: 'TOKEN' }] } });
    const sealed = [{ name: 'TOKEN', sealed: secrets.seal(plan.id, 'TOKEN', Buffer.from('hush')) }];
    const row = await placement.placeNow((await store.sandboxes.create({ ...plan, secrets: sealed })).id);
    await becomes(row, 'running');
    await store.sandboxes.setDesired(row.id, 'stopped');
    await becomes(row, 'stopped');
    await store.sandboxes.setDesired(row.id, 'running');
    await becomes(row, 'running');
    expect(carried).toEqual([['TOKEN=hush'], ['TOKEN=hush']]);

    const foreign = draft({ spec: { secrets: [{ name: 'TOKEN' }] } });
    const lost = await placement.placeNow((await store.sandboxes.create({ ...foreign, secrets: sealed })).id);
    await becomes(lost, 'failed');
    expect(await store.sandboxes.get(lost.id)).toMatchObject({ reason: 'failed-precondition' });
    expect(carried).toHaveLength(2);
  });

  it('a run that has ended is not restarted, whatever wakes the loop', async () => {
    const host = await joined();
    const row = await create();
    await becomes(row, 'running');
    await hub.report(host, host.set(row.id, 1n, 'STOPPED', { exitCode: 7 }));
    await store.events.append([{ kind: 'sandbox', type: 'SandboxDesiredChanged', subject: row.id, data: { hostId: host.id } }]);
    await hub.drop(host);
    await hub.connect(host);
    await clock.advance(120_000);
    expect(host.commands).toEqual([`create ${row.id}`]);
    expect(await store.sandboxes.get(row.id)).toMatchObject({ exitCode: 7, observed: 'stopped' });
  });

  it('--rm: a sandbox is removed after its command ended, and keeps its exit code', async () => {
    const host = await joined();
    const row = await create({ spec: { image: 'host', removeOnExit: true } });
    await becomes(row, 'running');
    await hub.report(host, host.set(row.id, 1n, 'STOPPED', { exitCode: 7 }));
    const stop = new AbortController();
    const upkeep = new Upkeep({ store, clock, logger: silentLogger }).run(stop.signal);
    await settle();
    // Its output can still be read from the host.
    expect([await state(row), host.copies.size]).toEqual(['stopped', 1]);
    await clock.advance(removeOnExitMs + upkeepMs);
    await becomes(row, 'deleted');
    stop.abort();
    await upkeep;
    expect(host.copies.size).toBe(0);
    expect((await store.sandboxes.get(row.id))?.exitCode).toBe(7);
  });

  it('a permanent error fails the sandbox with a hint, without a retry', async () => {
    const host = await joined();
    host.before = () => {
      throw new DroverError('image-not-found', 'there is no image nope', { hint: 'look at its name' });
    };
    const row = await create();
    await becomes(row, 'failed');
    await clock.advance(300_000);
    expect(host.commands).toHaveLength(1);
    expect(await store.sandboxes.get(row.id)).toMatchObject({
      reason: 'image-not-found',
      message: 'there is no image nope',
      hint: 'look at its name',
    });
    // Its files on the host take a slot, like those of a stopped sandbox.
    expect((await store.hosts.get(host.id))?.reserved).toEqual({ cpuMillis: 0, memoryBytes: 0, slots: 1 });
    host.before = () => undefined;
    await store.sandboxes.setDesired(row.id, 'running');
    await placement.placeNow(row.id);
    await becomes(row, 'running');
  });

  it('L-22: a transient error is retried with growing delays, a bounded number of times', async () => {
    const host = await joined();
    const at: number[] = [];
    host.before = (operation) => {
      if (operation.case !== 'create') return;
      at.push(clock.now());
      throw new DroverError('unavailable', 'the gateway does not answer');
    };
    const row = await create();
    await until(() => at.length === 1);
    await becomes(row, 'preparing');
    for (let i = 0; i < 100 && (await state(row)) !== 'failed'; i++) await clock.advance(500);
    expect(await store.sandboxes.get(row.id)).toMatchObject({ observed: 'failed', reason: 'unavailable' });
    const delays = at.slice(1).map((time, i) => time - (at[i] ?? 0));
    expect(delays).toEqual([500, 1000, 2000, 4000, 8000]);
    // No creation is pending on the host.
    await until(() => host.has(row.id) === 'STOPPED');
    await clock.advance(300_000);
    expect([at.length, await state(row)]).toEqual([6, 'failed']);
  });

  it('L-22, R-9: a transient error of a create or a start never shows as failed, also over a new stream', async () => {
    const host = await joined();
    const refuse = (): void => {
      throw new DroverError('unavailable', 'the gateway does not answer');
    };
    const row = await create();
    await becomes(row, 'running');
    await store.sandboxes.setDesired(row.id, 'stopped');
    await becomes(row, 'stopped');
    host.before = refuse;
    const other = await create();
    await store.sandboxes.setDesired(row.id, 'running');
    for (const sandbox of [row, other]) await becomes(sandbox, 'preparing');
    // The agent restarts, and knows the sandboxes from its state directory.
    await hub.drop(host);
    host.before = () => undefined;
    await hub.connect(host);
    for (const sandbox of [row, other]) await becomes(sandbox, 'running');
    const events = await store.events.after(0, 1000, { kinds: ['sandbox'] });
    expect(events.filter(({ data }) => data['state'] === 'failed')).toEqual([]);
  });

  it('R-13: a registry error that the host has already retried is not retried', async () => {
    const host = await joined();
    host.before = () => {
      throw new DroverError('registry-unreachable', 'no answer');
    };
    const row = await create();
    await becomes(row, 'failed');
    await clock.advance(300_000);
    expect(host.commands).toHaveLength(1);
  });

  it('L-26: a sandbox that still runs after a reconnect is adopted, not started again', async () => {
    const host = await joined();
    const row = await create();
    await becomes(row, 'running');
    await hub.drop(host);
    const stop = new AbortController();
    const upkeep = new Upkeep({ store, clock, logger: silentLogger, lostGraceMs: 60_000 }).run(stop.signal);
    await clock.advance(59_000);
    expect(await state(row)).toBe('running');
    await clock.advance(10_000);
    await becomes(row, 'lost');
    await hub.connect(host);
    await becomes(row, 'running');
    await settle();
    expect(host.commands).toEqual([`create ${row.id}`]);
    stop.abort();
    await upkeep;
  });

  it('L-26: the copy of a sandbox that has moved is fenced when its host reconnects', async () => {
    const first = await joined();
    const row = await create();
    await becomes(row, 'running');
    await hub.drop(first);
    const second = await joined();
    await store.sandboxes.unplace(row.id, first.id, 'draining');
    await placement.placeNow(row.id);
    await until(() => second.has(row.id) === 'RUNNING');
    await hub.connect(first);
    await until(() => first.copies.size === 0);
    await settle();
    expect(second.commands).toEqual([`create ${row.id}`]);
    expect(await state(row)).toBe('running');
    expect((await store.hosts.get(first.id))?.reserved.slots).toBe(0);
  });

  it('L-26: a copy of an unknown sandbox is removed', async () => {
    const host = new FakeHost(newHostId());
    host.set(newSandboxId(), 1n, 'RUNNING');
    await store.hosts.join({ id: host.id, name: 'x', labels: {}, certificateExpiresAt: 1 });
    await hub.connect(host);
    await until(() => host.copies.size === 0);
  });

  it('L-23, L-29: a stream that drops during a creation loses nothing and creates nothing twice', async () => {
    const host = await joined();
    const began = Promise.withResolvers<void>();
    host.before = () => {
      began.resolve();
      return new Promise(() => undefined);
    };
    const row = await create();
    await began.promise;
    await hub.drop(host);
    host.before = () => undefined;
    // The host has created it; only the response was lost.
    host.set(row.id, 1n, 'RUNNING');
    await hub.connect(host);
    await becomes(row, 'running');
    expect(host.commands).toEqual([`create ${row.id}`]);
  });

  it('L-18: a slow sandbox delays no other', async () => {
    const host = await joined();
    const slow = await store.sandboxes.create(draft());
    host.before = (operation) =>
      operation.case === 'create' && operation.value.sandbox?.sandboxId === slow.id ? new Promise(() => undefined) : undefined;
    await placement.placeNow(slow.id);
    const quick = await create();
    await becomes(quick, 'running');
    expect(await state(slow)).toBe('scheduled');
  });

  it('L-10, L-29: a host that failed together with its replica is marked down by another replica', async () => {
    const host = await joined();
    const stop = new AbortController();
    const upkeep = new Upkeep({ store, clock, logger: silentLogger }).run(stop.signal);
    await clock.advance(85_000);
    expect((await store.hosts.get(host.id))?.connected).toBe(true);
    await clock.advance(15_000);
    await until(async () => (await store.hosts.get(host.id))?.connected === false);
    stop.abort();
    await upkeep;
  });

  it('R-20: a sandbox is stopped after its TTL', async () => {
    await joined();
    const row = await create({ spec: { image: 'host', ttlSeconds: 30n } });
    await becomes(row, 'running');
    const stop = new AbortController();
    const upkeep = new Upkeep({ store, clock, logger: silentLogger }).run(stop.signal);
    await clock.advance(40_000);
    await becomes(row, 'stopped');
    stop.abort();
    await upkeep;
  });

  it('L-27: a drain moves the sandboxes that fit elsewhere, names or stops the others, and reports its end', async () => {
    const host = await joined({ slots: 3 });
    const rows = [await create(), await create(), await create()];
    for (const row of rows) await becomes(row, 'running');
    const other = await joined({ slots: 1 });
    const drain = async (stop: boolean): Promise<DrainProgress[]> => {
      const all: DrainProgress[] = [];
      const { signal } = new AbortController();
      const moving = (async () => {
        for await (const progress of drainHost({ store, placement, clock, hostId: host.id, stop }, signal)) all.push(progress);
      })();
      let ended = false;
      void moving.finally(() => {
        ended = true;
      });
      await until(async () => {
        await clock.advance(500);
        return ended;
      });
      await moving;
      return all;
    };
    const first = await drain(false);
    expect(first[0]).toMatchObject({ total: 3, remaining: 3, done: false });
    expect(first.at(-1)).toMatchObject({ remaining: 2, done: true });
    await until(() => other.copies.size === 1 && host.copies.size === 2);
    const second = await drain(true);
    expect(second.at(-1)).toMatchObject({ total: 2, remaining: 0, done: true });
    expect([...host.copies.keys()].map((id) => host.has(id))).toEqual(['STOPPED', 'STOPPED']);
    expect((await placement.placeNow((await store.sandboxes.create(draft({ room: smallRoom }))).id)).pendingReason).toBe('unschedulable');
  });

  it('an uncordon ends a drain with an error', async () => {
    const host = await joined({ slots: 2 });
    const rows = [await create(), await create()];
    for (const row of rows) await becomes(row, 'running');
    // The stops never end, like those of a command that ignores SIGTERM: the drain waits.
    host.before = async (operation) => {
      if (operation.case === 'stop') await new Promise(() => undefined);
    };
    const draining = drainHost({ store, placement, clock, hostId: host.id, stop: true }, new AbortController().signal);
    expect((await draining.next()).value).toMatchObject({ total: 2, remaining: 2, done: false });
    expect((await draining.next()).value).toMatchObject({ remaining: 2, message: 'waiting for what is stopping' });
    await store.hosts.setScheduling(host.id, 'open');
    const next = draining.next();
    let ended = false;
    const outcome = next.catch((error: unknown) => error).finally(() => (ended = true));
    await until(async () => {
      await clock.advance(500);
      return ended;
    });
    expect(await outcome).toMatchObject({
      code: 'conflict',
      message: expect.stringMatching(/was uncordoned while it drained; what is left on it stays there/),
    });
  });

  it('L-22: after any requests, drops, repetitions and delays, the hosts converge to the desired state', async () => {
    const seed = Number(process.env['DROVER_TEST_SEED'] ?? Date.now() % 100_000);
    let value = seed;
    // A seeded generator (the LCG of Numerical Recipes), so that a failure can be reproduced.
    const random = (): number => {
      value = (value * 1_664_525 + 1_013_904_223) % 2 ** 32;
      return value / 2 ** 32;
    };
    const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)] as T;
    const hosts = [await joined(), await joined()];
    for (const host of hosts) {
      host.before = async () => {
        for (let i = Math.floor(random() * 4); i > 0; i--) {
          await new Promise((resolve) => {
            setImmediate(resolve);
          });
        }
        if (random() < 0.2) throw new DroverError('queue-full', 'simulated');
      };
    }
    const rows: SandboxRow[] = [];
    for (let turn = 0; turn < 120; turn++) {
      const host = pick(hosts);
      const row = rows.length > 0 ? pick(rows) : undefined;
      const action = random();
      if (action < 0.25 && rows.length < 12) rows.push(await create());
      else if (action < 0.6 && row !== undefined) {
        // A request that the state does not allow is refused, which is correct here.
        await store.sandboxes.setDesired(row.id, pick(['running', 'stopped', 'paused', 'deleted'])).catch(() => undefined);
      } else if (action < 0.7) await hub.drop(host);
      else if (action < 0.8) await hub.connect(host);
      else if (action < 0.9) await hub.report(host, ...host.copies.values());
      else await clock.advance(random() * 2000);
    }
    for (const host of hosts) {
      host.before = () => undefined;
      await hub.connect(host);
    }
    const converged = async (): Promise<boolean> => {
      await clock.advance(5_000);
      for (const waiting of await store.sandboxes.unplaced(100)) await placement.placeNow(waiting.id);
      for (const row of rows) {
        const now = await store.sandboxes.get(row.id);
        const copies = hosts.map((host) => host.has(row.id)).filter((copy) => copy !== undefined);
        if (now === undefined || copies.length > 1) return false;
        const copy = copies[0];
        const asDesired =
          now.desired === 'deleted'
            ? now.deletedAt !== undefined && copy === undefined
            : now.observed === 'failed'
              ? copy !== 'RUNNING'
              : { running: 'RUNNING', paused: 'PAUSED', stopped: 'STOPPED' }[now.desired] === (copy ?? 'STOPPED');
        if (!asDesired) return false;
      }
      return true;
    };
    for (let i = 0; i < 60 && !(await converged()); i++);
    expect(await converged(), `seed ${seed}`).toBe(true);
    expect(hosts.map((host) => host.overlaps)).toEqual([0, 0]);
  });
});
