import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { FakeClock, newHostId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { retainedEvents, lostGraceMs, orphanedHostMs, removeOnExitMs, upkeepMs } from '../limits.ts';
import { sandboxState } from '../model/state.ts';
import type { Store } from '../store/store.ts';
import { draft, readyHost, registration, seen } from '../store/testing/fixtures.ts';
import { TestStores } from '../store/testing/stores.ts';
import { Upkeep, type UpkeepOptions } from './upkeep.ts';

describe.each(['sqlite', 'postgres'] as const)('upkeep on %s', (kind) => {
  const stores = new TestStores(kind);
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  afterEach(() => stores.closeAll());

  /** Runs upkeep, as a replica does, until it is disposed. */
  function running(store: Store, clock: FakeClock, more: Partial<UpkeepOptions> = {}): AsyncDisposable {
    const stop = new AbortController();
    const done = new Upkeep({ store, clock, logger: silentLogger, ...more }).run(stop.signal);
    return {
      [Symbol.asyncDispose]: async () => {
        stop.abort();
        await done;
      },
    };
  }

  /** Advances the clock round by round. Each round ends before the next begins. */
  async function pass(clock: FakeClock, ms: number): Promise<void> {
    for (let left = ms; left > 0; left -= upkeepMs) {
      while (clock.sleeping === 0) {
        await new Promise((resolve) => {
          setImmediate(resolve);
        });
      }
      await clock.advance(Math.min(upkeepMs, left));
    }
    while (clock.sleeping === 0) {
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
    }
  }

  it('L-29: another replica marks down the hosts of a dead replica, and owns those that register with it', async () => {
    const clock = new FakeClock(1_000_000);
    const url = await stores.newUrl();
    const [dead, alive] = [await stores.open({ url, clock }), await stores.open({ url, clock })];
    const { id, epoch } = await readyHost(dead);
    const row = await dead.sandboxes.create(draft());
    await dead.sandboxes.place(row.id, id);
    await dead.sandboxes.observe(id, epoch, [seen(row, 'RUNNING')]);
    // The replica that held the stream has crashed: no heartbeat is stored from here on.
    await using _ = running(alive, clock);
    const host = async () => await alive.hosts.get(id);
    const state = async (): Promise<string> => {
      const now = await alive.sandboxes.get(row.id);
      return now === undefined ? 'none' : sandboxState(now).state;
    };

    await pass(clock, orphanedHostMs - upkeepMs);
    expect(await host()).toMatchObject({ connected: true, owner: 'replica-1' });
    await pass(clock, 2 * upkeepMs);
    expect(await host()).toMatchObject({ connected: false, owner: '', epoch });
    expect((await host())?.downReason).toContain('silent');
    // No sandbox is placed on the host, and its sandboxes are not lost yet (L-26).
    const other = await alive.sandboxes.create(draft());
    expect(await alive.sandboxes.place(other.id, id)).toBe(false);
    expect(await state()).toBe('running');
    await pass(clock, lostGraceMs + upkeepMs);
    expect(await state()).toBe('lost');

    const again = await alive.hosts.register(
      registration(id, { sandboxes: [seen({ ...row, observedSequence: 1 }, 'RUNNING')] }),
      'replica-2',
    );
    expect(again.epoch).toBe(epoch + 1);
    expect(await host()).toMatchObject({ connected: true, owner: 'replica-2' });
    expect(await state()).toBe('running');
    expect((await alive.sandboxes.get(row.id))?.startCount).toBe(1);
  });

  it('L-9, L-10: a host with stored heartbeats stays ready; after a false alarm, the next heartbeat makes it ready again', async () => {
    const clock = new FakeClock(1_000_000);
    const store = await stores.open({ clock });
    const { id, epoch } = await readyHost(store);
    await using _ = running(store, clock);
    const beat = async (): Promise<void> =>
      await store.hosts.heartbeats([{ id, epoch, at: clock.now(), loadMilli: 0, memoryAvailableBytes: 1, diskAvailableBytes: 1 }]);
    for (let i = 0; i < 4; i++) {
      await pass(clock, orphanedHostMs / 2);
      await beat();
    }
    expect((await store.hosts.get(id))?.connected).toBe(true);
    await pass(clock, orphanedHostMs + 2 * upkeepMs);
    expect((await store.hosts.get(id))?.connected).toBe(false);
    await clock.advance(1);
    await beat();
    expect((await store.hosts.get(id))?.connected).toBe(true);
  });

  it('I-11: compares the sessions with the registry in every round; a failure blocks no other task', async () => {
    const clock = new FakeClock(1_000_000);
    const store = await stores.open({ clock });
    const { id } = await readyHost(store);
    let compared = 0;
    const compareSessions = async (): Promise<void> => {
      compared++;
      return await Promise.reject(new Error('the store is away'));
    };
    await using _ = running(store, clock, { compareSessions });
    await pass(clock, orphanedHostMs + upkeepMs);
    expect(compared).toBeGreaterThanOrEqual(orphanedHostMs / upkeepMs);
    expect((await store.hosts.get(id))?.connected).toBe(false);
  });

  it('R-2: --rm removes an ended sandbox, but not one that is started again concurrently', async () => {
    const clock = new FakeClock(1_000_000);
    const store = await stores.open({ clock });
    const { id, epoch } = await readyHost(store);
    const ended = await Promise.all(
      [0, 1].map(async () => {
        const row = await store.sandboxes.create(draft({ spec: { image: 'host', removeOnExit: true } }));
        await store.sandboxes.place(row.id, id);
        await store.sandboxes.observe(id, epoch, [seen(row, 'STOPPED', { exitCode: 0 })]);
        return row;
      }),
    );
    const [restarted, finished] = ended;
    if (restarted === undefined || finished === undefined) throw new Error('there are two');
    // A start arrives between the query and the removal.
    const query = store.sandboxes.finished.bind(store.sandboxes);
    vi.spyOn(store.sandboxes, 'finished').mockImplementation(async (before) => {
      const rows = await query(before);
      if (rows.some((row) => row.id === restarted.id)) await store.sandboxes.setDesired(restarted.id, 'running');
      return rows;
    });
    await using _ = running(store, clock);
    await pass(clock, removeOnExitMs + 2 * upkeepMs);
    expect((await store.sandboxes.get(finished.id))?.desired).toBe('deleted');
    expect((await store.sandboxes.get(restarted.id))?.desired).toBe('running');
  });

  it('drops old deleted sandboxes, expired tokens, old idempotency keys, and events beyond the retained number', async () => {
    const clock = new FakeClock(1_000_000_000_000);
    const store = await stores.open({ clock });
    const rows = await Promise.all(['a', 'b', 'c'].map(async (name) => await store.sandboxes.create(draft({ name }))));
    for (const row of rows.slice(0, 2)) {
      await clock.advance(1);
      await store.sandboxes.setDesired(row.id, 'deleted');
    }
    await store.tokens.createJoin({ hash: 'h', expiresAt: clock.now() + 1, uses: 1, labels: {} });
    await store.tokens.takeJoin('h', newHostId());
    const [, , kept] = rows;
    if (kept === undefined) throw new Error('there are three');
    const certificate = { sandboxId: kept.id, thumbprint: 'ab', requestHash: 'cd' };
    await store.identities.issue({ ...certificate, hash: 'ef', expiresAt: clock.now() + 1 });
    const answer = async (text: string): Promise<string> =>
      Buffer.from(await store.idempotency.once('k', 'Do', new Uint8Array(), () => Promise.resolve(Buffer.from(text)))).toString();
    expect(await answer('first')).toBe('first');
    const names = async (): Promise<string[]> => (await store.sandboxes.list({ includeDeleted: true })).map((row) => row.name).sort();
    {
      await using _ = running(store, clock, { retainedDeleted: 1, retainedEvents: 2 });
      await pass(clock, upkeepMs);
      // The limit by number applies immediately, and keeps the sandbox deleted last.
      expect(await names()).toEqual(['b', 'c']);
      expect(await store.events.after(0, retainedEvents)).toHaveLength(2);
      expect(await answer('second')).toBe('first');
    }
    await clock.advance(8 * 86_400_000);
    await using _ = running(store, clock);
    await pass(clock, upkeepMs);
    expect(await names()).toEqual(['c']);
    expect(await answer('third')).toBe('third');
    expect(await store.tokens.trimJoin(clock.now())).toBe(0);
    expect(await store.identities.trimTokens(clock.now())).toBe(0);
  });
});
