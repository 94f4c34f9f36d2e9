import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { DroverError, FakeClock, newHostId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { killGraceMs } from '@drover/spec';
import type { Operation } from '../hub/hub.ts';
import { EventFeed } from '../feed/index.ts';
import { Placement } from '../placement/index.ts';
import { SecretBox } from '../secrets/index.ts';
import { sandboxState } from '../model/state.ts';
import type { SandboxRow } from '../model/sandbox.ts';
import type { Store } from '../store/store.ts';
import { draft } from '../store/testing/fixtures.ts';
import { TestStores } from '../store/testing/stores.ts';
import { Reconciler } from './reconciler.ts';
import { FakeHost, FakeHub } from './testing/fake-hub.ts';

describe('cutting the network of a sandbox (I-4), on a real store and simulated hosts', () => {
  const stores = new TestStores('sqlite');
  let clock: FakeClock;
  let store: Store;
  let hub: FakeHub;
  let host: FakeHost;
  let feed: EventFeed;
  let reconciler: Reconciler;
  let placement: Placement;
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    clock = new FakeClock(1_000_000);
    store = await stores.open({ clock });
    hub = new FakeHub(store);
    const secrets = new SecretBox(randomBytes(32));
    const onAbsent = (): void => undefined;
    feed = await EventFeed.open(store.events, clock, silentLogger);
    reconciler = new Reconciler({ store, hub, feed, secrets, clock, logger: silentLogger, random: () => 1, onAbsent });
    reconciler.attach();
    placement = new Placement({ store, clock, logger: silentLogger });
    host = new FakeHost(newHostId());
    await store.hosts.join({ id: host.id, name: 'one', labels: {}, certificateExpiresAt: 1 });
    await hub.connect(host);
  });
  afterEach(async () => {
    await reconciler.close();
    await feed.close();
    await stores.closeAll();
  });

  const get = async ({ id }: SandboxRow): Promise<SandboxRow> => {
    const row = await store.sandboxes.get(id);
    if (row === undefined) throw new Error(`no row ${id}`);
    return row;
  };
  const until = async (condition: () => Promise<boolean> | boolean): Promise<void> => {
    await vi.waitUntil(condition, { interval: 1 });
  };
  const becomes = async (row: SandboxRow, state: string): Promise<void> =>
    await until(async () => sandboxState(await get(row)).state === state);
  const cut = async (row: SandboxRow, is: boolean): Promise<void> => await until(async () => (await get(row)).observedNetworkCut === is);
  const create = async (): Promise<SandboxRow> => await store.sandboxes.create(draft());
  const commands = (): (string | undefined)[] => host.commands.map((command) => command.split(' ')[0]);

  it('I-4: the host cuts and restores the network, and reports both', async () => {
    const row = await placement.placeNow((await create()).id);
    await becomes(row, 'running');
    await store.sandboxes.setNetworkCut(row.id, true);
    await cut(row, true);
    await store.sandboxes.setNetworkCut(row.id, true);
    await store.sandboxes.setNetworkCut(row.id, false);
    await cut(row, false);
    expect(commands()).toEqual(['create', 'setNetworkCut', 'setNetworkCut']);
    expect(sandboxState(await get(row)).state).toBe('running');
  });

  it('I-4: a cut precedes the pause that is requested with it', async () => {
    const row = await placement.placeNow((await create()).id);
    await becomes(row, 'running');
    await store.together(async (tables) => {
      await tables.sandboxes.setDesired(row.id, 'paused');
      await tables.sandboxes.setNetworkCut(row.id, true);
    });
    await becomes(row, 'paused');
    expect(commands()).toEqual(['create', 'setNetworkCut', 'pause']);
  });

  it('I-4: a contained sandbox is created, and started again, without a network', async () => {
    const row = await create();
    await store.sandboxes.setNetworkCut(row.id, true);
    const carried: boolean[] = [];
    host.before = (operation) => {
      if (operation.case === 'create' || operation.case === 'start') carried.push(operation.value.networkCut);
    };
    await placement.placeNow(row.id);
    await becomes(row, 'running');
    await store.sandboxes.setDesired(row.id, 'stopped');
    await becomes(row, 'stopped');
    await store.sandboxes.setDesired(row.id, 'running');
    await becomes(row, 'running');
    expect([carried, (await get(row)).observedNetworkCut]).toEqual([[true, true], true]);
    expect(commands()).toEqual(['create', 'stop', 'start']);
  });

  it('I-4: a failed cut is retried, also after the host reconnects', async () => {
    const row = await placement.placeNow((await create()).id);
    await becomes(row, 'running');
    await hub.drop(host);
    await store.sandboxes.setNetworkCut(row.id, true);
    let refusals = 2;
    host.before = (operation) => {
      if (operation.case === 'setNetworkCut' && refusals-- > 0) throw new DroverError('runtime-failed', 'nft failed');
    };
    await hub.connect(host);
    for (let i = 0; i < 100 && !(await get(row)).observedNetworkCut; i++) await clock.advance(500);
    expect(await get(row)).toMatchObject({ observedNetworkCut: true, observed: 'running' });
    expect(commands().filter((command) => command === 'setNetworkCut')).toHaveLength(3);
  });

  /** Holds commands of a kind at the host. `waiting` returns the number of held commands. */
  const holdCommands = (kind: Operation['case']): { readonly waiting: () => number; readonly release: () => void } => {
    const held: (() => void)[] = [];
    host.before = async (operation) => {
      if (operation.case === kind) await new Promise<void>((resolve) => held.push(resolve));
    };
    return {
      waiting: () => held.length,
      release: () => {
        host.before = () => undefined;
        for (const resolve of held) resolve();
      },
    };
  };

  it('I-4: a kill, a shorter grace and a removal do not wait for a stop under way; a longer grace is not sent', async () => {
    const graces: number[] = [];
    const row = await placement.placeNow((await create()).id);
    await becomes(row, 'running');
    const { waiting, release } = holdCommands('stop');
    const hold = host.before;
    host.before = async (operation) => {
      if (operation.case === 'stop') graces.push(operation.value.graceMs);
      await hold(operation);
    };
    await store.sandboxes.setDesired(row.id, 'stopped', { graceMs: 600_000 });
    await until(() => waiting() === 1);
    await store.sandboxes.setDesired(row.id, 'stopped', { graceMs: 60_000 });
    await until(() => waiting() === 2);
    await store.sandboxes.setDesired(row.id, 'stopped', { graceMs: 90_000 });
    await store.sandboxes.setDesired(row.id, 'stopped', { kill: true });
    await until(() => waiting() === 3);
    await store.sandboxes.setDesired(row.id, 'deleted');
    await becomes(row, 'deleted');
    release();
    expect(graces).toEqual([600_000, 60_000, killGraceMs]);
    expect(commands()).toEqual(['create', 'stop', 'stop', 'stop', 'destroy']);
  });

  it('I-4: a cut does not wait for a stop under way, and is sent once', async () => {
    const row = await placement.placeNow((await create()).id);
    await becomes(row, 'running');
    const { waiting, release } = holdCommands('stop');
    await store.sandboxes.setDesired(row.id, 'stopped', { graceMs: 600_000 });
    await until(() => waiting() === 1);
    await hub.report(host, host.set(row.id, 2n, 'STOPPING'));
    await store.sandboxes.setNetworkCut(row.id, true);
    await cut(row, true);
    release();
    await becomes(row, 'stopped');
    expect(commands()).toEqual(['create', 'stop', 'setNetworkCut']);
  });

  it('I-4: a cut is sent while the host still creates the sandbox', async () => {
    const { waiting, release } = holdCommands('create');
    const row = await placement.placeNow((await create()).id);
    await until(() => waiting() === 1);
    await hub.report(host, host.set(row.id, 1n, 'PREPARING', { startCount: 0n }));
    await store.sandboxes.setNetworkCut(row.id, true);
    await until(() => commands().includes('setNetworkCut'));
    release();
    await becomes(row, 'running');
    await cut(row, true);
  });

  it('I-4: a failing cut prevents neither a pause nor a stop', async () => {
    const row = await placement.placeNow((await create()).id);
    await becomes(row, 'running');
    host.before = (operation) => {
      if (operation.case === 'setNetworkCut') throw new DroverError('runtime-failed', 'nft failed');
    };
    await store.sandboxes.setNetworkCut(row.id, true);
    await until(() => commands().includes('setNetworkCut'));
    await store.sandboxes.setDesired(row.id, 'paused');
    await becomes(row, 'paused');
    await store.sandboxes.setDesired(row.id, 'stopped', { kill: true });
    await becomes(row, 'stopped');
  });

  it('I-4: a stop of a sandbox contained by a pause has the grace of a kill, so it does not run again', async () => {
    const graces: number[] = [];
    host.before = (operation) => {
      if (operation.case === 'stop') graces.push(operation.value.graceMs);
    };
    const row = await placement.placeNow((await create()).id);
    await becomes(row, 'running');
    await store.together(async (tables) => {
      await tables.sandboxes.setDesired(row.id, 'paused');
      await tables.sandboxes.setContainment(row.id, 'pause', { by: 'admin', at: 0, reason: '' });
    });
    await becomes(row, 'paused');
    await store.sandboxes.setDesired(row.id, 'stopped', { graceMs: 60_000 });
    await becomes(row, 'stopped');
    expect(graces).toEqual([killGraceMs]);
  });

  it('I-4: the registration port of a revoked sandbox is closed from its creation until it is reinstated', async () => {
    const row = await create();
    await store.identities.setRevoked(row.id, true);
    await placement.placeNow(row.id);
    await becomes(row, 'running');
    expect((await get(row)).observedRegistrationClosed).toBe(true);
    await store.identities.setRevoked(row.id, false);
    // The event of the containment record triggers a plan as well.
    await store.sandboxes.setContainment(row.id, 'revoke', { by: 'admin', at: 0, reason: '' });
    await until(async () => !(await get(row)).observedRegistrationClosed);
    expect(commands()).toEqual(['create', 'setNetworkCut']);
  });
});
