import { DroverError, FakeClock, newSandboxId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { standbyDemandMs, standbyRestMs, standbyRetryCapMs, standbyReviewMs } from '../limits.ts';
import type { Backend, StartRequest } from './backend.ts';
import { FakeBackend } from './fake/index.ts';
import { withStandbys, type PrestartingBackend } from './standbys.ts';

/** Prestarts nothing but ids, and notes which standby each create used. */
class PrestartingFake extends FakeBackend implements PrestartingBackend {
  readonly standbys = new Set<SandboxId>();
  readonly used: (SandboxId | undefined)[] = [];
  prestarts = 0;
  /** Addresses for standbys. */
  room = 100;
  failure: DroverError | undefined;

  async prestart(): Promise<SandboxId | undefined> {
    this.prestarts++;
    if (this.failure !== undefined) throw this.failure;
    if (this.standbys.size >= this.room) return await Promise.resolve(undefined);
    const id = newSandboxId();
    this.standbys.add(id);
    return id;
  }

  override async create(request: StartRequest, signal: AbortSignal, standby?: SandboxId): Promise<void> {
    this.used.push(standby);
    if (standby !== undefined) this.standbys.delete(standby);
    await super.create(request, signal);
  }

  async discard(standby: SandboxId): Promise<void> {
    this.standbys.delete(standby);
    await Promise.resolve();
  }
}

let clock: FakeClock;
let inner: PrestartingFake;
let backend: Backend;
let opening: () => Promise<void>;

async function open(most: number): Promise<void> {
  backend = withStandbys(inner, { most, clock, logger: silentLogger });
  await backend.sweep(new Set());
}
const create = async (): Promise<void> => {
  const id = newSandboxId();
  const complete = async (): Promise<void> => await Promise.resolve();
  const limits = { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, pids: 0, shmBytes: 0 };
  const request = { id, hostname: 'box', image: 'host', limits, mounts: [], runDirectory: '/nowhere', complete, opening: () => opening() };
  await backend.create(request, new AbortController().signal);
};
const ready = async (count: number): Promise<void> => await vi.waitFor(() => expect(inner.standbys.size).toBe(count));

beforeEach(() => {
  clock = new FakeClock(1_000_000);
  inner = new PrestartingFake();
  opening = async () => await Promise.resolve();
});
afterEach(async () => await backend.close());

describe('standbys', () => {
  test('are used once each, and are made again when no start has been under way for a while', async () => {
    await open(2);
    await ready(2);
    const opened = Promise.withResolvers<void>();
    opening = async () => await opened.promise;
    const creates = [create(), create(), create()];
    await vi.waitFor(() => expect(inner.used).toHaveLength(3));
    expect(new Set(inner.used.slice(0, 2)).size).toBe(2);
    expect(inner.used[2]).toBeUndefined();
    // Not while a start is under way.
    await clock.advance(10 * standbyRestMs);
    expect(inner.prestarts).toBe(2);
    opened.resolve();
    await Promise.all(creates);
    await clock.advance(standbyRestMs - 1);
    expect(inner.prestarts).toBe(2);
    await vi.waitFor(async () => {
      await clock.advance(standbyRestMs);
      expect(inner.standbys.size).toBe(2);
    });
  });

  test('are discarded when the backend is closed', async () => {
    await open(3);
    await ready(3);
    await backend.close();
    expect(inner.standbys.size).toBe(0);
  });

  test('that cannot be made are tried less and less often, until they can be', async () => {
    inner.failure = new DroverError('runtime-failed', 'no');
    await open(2);
    await vi.waitFor(async () => {
      await clock.advance(1_000);
      expect(inner.prestarts).toBeGreaterThanOrEqual(4);
    });
    const before = inner.prestarts;
    for (let minute = 0; minute < 30; minute++) await clock.advance(60_000);
    expect(inner.prestarts - before).toBeLessThan(40);
    await create();
    expect(inner.used).toEqual([undefined]);
    inner.failure = undefined;
    await vi.waitFor(async () => {
      await clock.advance(standbyRetryCapMs);
      expect(inner.standbys.size).toBeGreaterThan(0);
    });
  });

  test('leave addresses to sandboxes', async () => {
    inner.room = 1;
    await open(5);
    await vi.waitFor(() => expect(inner.prestarts).toBe(2));
    await clock.advance(10 * standbyRestMs);
    expect([inner.prestarts, inner.standbys.size]).toEqual([2, 1]);
  });

  test('become fewer when it is quiet, and more after a burst', async () => {
    await open(8);
    await ready(8);
    await vi.waitFor(async () => {
      await clock.advance(standbyDemandMs + standbyReviewMs);
      expect(inner.standbys.size).toBe(2);
    });
    for (let each = 0; each < 6; each++) await create();
    await vi.waitFor(async () => {
      await clock.advance(standbyRestMs);
      expect(inner.standbys.size).toBe(6);
    });
  });
});
