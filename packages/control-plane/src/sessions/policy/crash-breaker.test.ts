import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FakeClock, newSandboxId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { crashDelayBaseMs, crashSettledMs, crashTrialGroupMax, crashTrialMs } from '../../limits.ts';
import { CrashBreaker } from './crash-breaker.ts';

let directory: string;
let clock: FakeClock;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-breaker-'));
  clock = new FakeClock(1_000_000);
});
afterEach(async () => await rm(directory, { recursive: true, force: true }));

/** The breaker of a server. A breaker that is not closed represents a crashed server, of which the next one sees only the record. */
async function server(): Promise<CrashBreaker> {
  // The clock of a crashed server stops.
  clock = new FakeClock(clock.now());
  return await CrashBreaker.open(join(directory, 'crashes.json'), '', clock, silentLogger);
}

async function crashes(count: number): Promise<void> {
  for (let n = 0; n < count; n++) await server();
}

/** Dials these, and returns the admitted ones. */
function dial(breaker: CrashBreaker, ids: readonly SandboxId[]): () => readonly SandboxId[] {
  const dialled = new Set<SandboxId>();
  for (const id of ids) {
    const wait = breaker.admit(id);
    if (wait === undefined) dialled.add(id);
    else void wait.admitted.then(() => dialled.add(id));
  }
  return () => ids.filter((id) => dialled.has(id));
}

const ids = (count: number): readonly SandboxId[] => Array.from({ length: count }, () => newSandboxId());

/** The record is written to a real disk, which the fake clock does not control. */
async function written<T>(read: () => T, wanted: T): Promise<void> {
  await expect.poll(async () => (await clock.advance(0), read()), { interval: 5, timeout: 5_000 }).toEqual(wanted);
}

describe('after crashes', () => {
  test('a server after a closed or killed one dials every sandbox without delay', async () => {
    await (await server()).close();
    const all = ids(5_000);
    expect(dial(await server(), all)()).toHaveLength(5_000);
    // The previous server was not closed.
    expect(dial(await server(), all)()).toHaveLength(5_000);
  });

  test('kills of settled servers do not add up', async () => {
    for (let n = 0; n < 4; n++) {
      const breaker = await server();
      await clock.advance(crashSettledMs);
      expect(breaker.admit(newSandboxId())).toBeUndefined();
      await expect.poll(async () => JSON.parse(await readRecord()).settled).toBe(true);
    }
  });

  test('sandboxes are dialled in groups that double', async () => {
    await crashes(2);
    const dialled = dial(await server(), ids(10));
    for (const count of [1, 3, 7, 10]) {
      await written(() => dialled().length, count);
      await clock.advance(crashTrialMs);
    }
  });

  test('a group is bounded, so that one hostile sandbox makes few others suspects', async () => {
    await crashes(2);
    const all = 4 * crashTrialGroupMax;
    const dialled = dial(await server(), ids(all));
    let count = 0;
    for (let size = 1; count < all; size = Math.min(2 * size, crashTrialGroupMax)) {
      count = Math.min(count + size, all);
      await written(() => dialled().length, count);
      await clock.advance(crashTrialMs);
    }
  });

  test('a crash during a trial leaves one suspect, and nothing else waits', async () => {
    await crashes(2);
    const all = ids(3);
    const first = dial(await server(), all);
    await written(() => first().length, 1);
    const [hostile] = first();

    // The server crashed: the record names the sandboxes on trial.
    const second = await server();
    const others = all.filter((id) => id !== hostile);
    expect(dial(second, others)()).toEqual(others);
    const wait = second.admit(hostile as SandboxId);
    expect(wait).toMatchObject({ delayMs: crashDelayBaseMs, reason: { code: 'failed-precondition' } });
    expect(wait?.reason?.message).toContain('ended unexpectedly once while it had a session with this sandbox');
    wait?.cancel();
    const late = dial(second, [hostile as SandboxId]);
    await clock.advance(crashDelayBaseMs - 1);
    expect(late()).toEqual([]);
    await clock.advance(1);
    await written(late, [hostile as SandboxId]);

    // After another crash the delay doubles.
    expect((await server()).admit(hostile as SandboxId)).toMatchObject({ delayMs: 2 * crashDelayBaseMs });
  });

  test('a suspect that passes its trial is cleared', async () => {
    await crashes(2);
    const [only] = ids(1) as [SandboxId];
    const first = dial(await server(), [only]);
    await written(first, [only]);
    const second = await server();
    const again = dial(second, [only]);
    await clock.advance(crashDelayBaseMs);
    await written(again, [only]);
    await clock.advance(crashTrialMs * 8);
    await expect.poll(async () => JSON.parse(await readRecord()).suspects).toEqual({});
    expect(second.admit(only)).toBeUndefined();
  });

  test('a withdrawn dial releases its place', async () => {
    await crashes(2);
    const breaker = await server();
    const [blocking, left, next] = ids(3) as [SandboxId, SandboxId, SandboxId];
    const first = dial(breaker, [blocking]);
    await written(first, [blocking]);
    breaker.admit(left)?.cancel();
    const last = dial(breaker, [next]);
    await clock.advance(crashTrialMs);
    await written(last, [next]);
    expect(JSON.parse(await readRecord()).trial).toEqual([next]);
  });

  test('new sandboxes do not wait after the earlier ones have been tried', async () => {
    await crashes(2);
    const breaker = await server();
    const first = dial(breaker, ids(1));
    await written(() => first().length, 1);
    await clock.advance(crashTrialMs);
    await expect.poll(async () => JSON.parse(await readRecord()).trial).toEqual([]);
    await clock.advance(crashTrialMs * 10);
    expect(breaker.admit(newSandboxId())).toBeUndefined();
  });
});

async function readRecord(): Promise<string> {
  return await readFile(join(directory, 'crashes.json'), 'utf8');
}
