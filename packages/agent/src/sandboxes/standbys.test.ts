import { existsSync } from 'node:fs';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DroverError, FakeClock, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { standbyFile } from '@drover/init';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { maxDefaultStandbys, standbyReadyMs, standbyRestMs, standbyRetryCapMs } from '../limits.ts';
import type { Network } from '../network/network.ts';
import { FakeRuntime, FakeState } from '../runtimes/fake/index.ts';
import type { NetworkAttachment, StandbyRequest } from '../runtimes/runtime.ts';
import { defaultStandbys, Standbys } from './standbys.ts';

let directory: string;
let life: AbortController;
let clock: FakeClock;
let runtime: FakeRuntime;
let standbys: Standbys;
/** What stands by, and how many networks are reserved. */
let made: Set<SandboxId>;
let reserved: Set<string>;
let begun: number;
/** What becomes of the next ones. */
let standBy: (request: StandbyRequest) => Promise<void>;
let room: number;

const ready = async ({ runDirectory }: StandbyRequest): Promise<void> => await writeFile(join(runDirectory, standbyFile), '');

function open(count: number): Standbys {
  const network: Pick<Network, 'reserve' | 'unreserve'> = {
    reserve: async () => {
      if (reserved.size >= room) return await Promise.resolve(undefined);
      const namespacePath = `/run/netns/${begun}`;
      reserved.add(namespacePath);
      return { namespacePath, address: '', gatewayAddress: '', proxyPort: 0, controlPort: 0, interface: '' };
    },
    unreserve: async ({ namespacePath }: NetworkAttachment) => {
      reserved.delete(namespacePath);
      await Promise.resolve();
    },
  };
  const options = {
    stateDirectory: directory,
    initDirectory: '/nowhere',
    runtime,
    logger: silentLogger,
    clock,
    count,
    signal: life.signal,
  };
  standbys = new Standbys({ ...options, network: network as Network });
  standbys.fill();
  return standbys;
}

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-standbys-'));
  life = new AbortController();
  clock = new FakeClock(1_000_000);
  made = new Set();
  reserved = new Set();
  begun = 0;
  room = 100;
  standBy = ready;
  runtime = Object.assign(new FakeRuntime({ state: new FakeState() }), {
    standBy: async (request: StandbyRequest) => {
      begun++;
      made.add(request.id);
      await standBy(request);
    },
    destroy: async (id: SandboxId) => {
      made.delete(id);
      await Promise.resolve();
    },
  });
});
afterEach(async () => {
  life.abort(new DroverError('cancelled', 'the test is over'));
  await standbys.close();
  await rm(directory, { recursive: true, force: true });
});

describe('sandboxes that are kept ready', () => {
  test('are as many as asked for, each given once, and made again when no start has been under way for a while', async () => {
    open(2);
    await vi.waitFor(() => expect(begun).toBe(2));
    {
      using _start = standbys.startUnderWay();
      await vi.waitFor(() => expect(standbys.take(runtime)).toBeDefined());
      const second = await vi.waitFor(() => {
        const taken = standbys.take(runtime);
        expect(taken).toBeDefined();
        return taken;
      });
      expect(standbys.take(runtime)).toBeUndefined();
      expect(made).toContain(second?.id);
      // Not while the start is under way.
      await clock.advance(10 * standbyRestMs);
    }
    const while_ = begun;
    await clock.advance(standbyRestMs - 1);
    expect(begun).toBe(while_);
    await vi.waitFor(async () => {
      await clock.advance(standbyRestMs);
      expect(begun).toBe(4);
    });
  });

  test('are taken away at the end, with their networks and directories', async () => {
    open(3);
    await vi.waitFor(() => expect(begun).toBe(3));
    const given = await vi.waitFor(() => {
      const taken = standbys.take(runtime);
      if (taken === undefined) throw new Error('none is ready');
      return taken;
    });
    await standbys.close();
    expect([...made]).toEqual([given.id]);
    await standbys.discard(given);
    expect([made.size, reserved.size]).toEqual([0, 0]);
    await vi.waitFor(async () => expect(await readdir(join(directory, 'run'))).toEqual([]));
  });

  test.each([
    ['cannot be made', async (): Promise<void> => await Promise.reject(new DroverError('runtime-failed', 'no'))],
    ['are never ready', async (): Promise<void> => await Promise.resolve()],
  ])('that %s leave nothing, and are tried less and less often, until they can be', async (_, becomes) => {
    standBy = becomes;
    open(2);
    await vi.waitFor(async () => {
      await clock.advance(standbyReadyMs + 1_000);
      expect(begun).toBeGreaterThanOrEqual(4);
    });
    const before = begun;
    for (let minute = 0; minute < 30; minute++) await clock.advance(60_000);
    expect(begun - before).toBeLessThan(40);
    expect(standbys.take(runtime)).toBeUndefined();
    standBy = ready;
    await vi.waitFor(async () => {
      await clock.advance(standbyRetryCapMs + standbyReadyMs);
      expect([made.size, reserved.size]).toEqual([2, 2]);
      expect(standbys.take(runtime)).toBeDefined();
    });
  });

  test('leave addresses to sandboxes', async () => {
    room = 1;
    open(5);
    await vi.waitFor(() => expect(begun).toBe(1));
    await clock.advance(10 * standbyRestMs);
    expect(begun).toBe(1);
  });

  test('are of one runtime', async () => {
    open(1);
    await vi.waitFor(() => expect(begun).toBe(1));
    await vi.waitFor(async () =>
      expect(existsSync(join(directory, 'run', (await readdir(join(directory, 'run')))[0] ?? '', standbyFile))).toBe(true),
    );
    expect(standbys.take(new FakeRuntime({ state: new FakeState() }))).toBeUndefined();
  });

  test('number one for each 2 GiB of memory, and no more than 16', () => {
    fc.assert(
      fc.property(fc.nat(2 ** 42), (memory) => {
        expect(defaultStandbys(memory)).toBe(Math.min(maxDefaultStandbys, Math.floor(memory / 2 ** 31)));
      }),
    );
  });
});
