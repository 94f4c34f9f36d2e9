import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FakeClock, newSandboxId, systemClock, type SandboxId } from '@drover/foundation';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ExitWatch } from './exit-watch.ts';

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-exit-'));
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});
const never = new AbortController().signal;

test('R-9: a sandbox that ends between the first look and the second is not missed', async () => {
  let looks = 0;
  await new ExitWatch(systemClock).wait(newSandboxId(), directory, () => ++looks > 1, never);
  expect(looks).toBe(2);
});

test('R-9: an end that nothing announced is seen within a second or so', async () => {
  const clock = new FakeClock(1_000_000);
  const exits = new ExitWatch(clock);
  let alive = true;
  let seen = false;
  const waiting = exits.wait(newSandboxId(), directory, () => !alive, never).then(() => (seen = true));
  await clock.advance(5_000);
  expect(seen).toBe(false);
  alive = false;
  await clock.advance(2_000);
  expect(seen).toBe(true);
  await waiting;
});

test('an exit record makes it look at once, though the time for the next look is far away', async () => {
  const clock = new FakeClock(1_000_000);
  const exits = new ExitWatch(clock);
  let alive = true;
  const waiting = exits.wait(newSandboxId(), directory, () => !alive, never);
  await clock.advance(1_500);
  alive = false;
  await writeFile(join(directory, 'exit.json'), '{}');
  // The clock stands still: only the file can have said it.
  await waiting;
});

test('one that was killed, or wrote its record, before anybody waited is looked at often; one that has just begun is not', async () => {
  const rarely = await mkdtemp(join(directory, 'rarely-'));
  const recorded = await mkdtemp(join(directory, 'recorded-'));
  await writeFile(join(recorded, 'exit.json'), '{}');
  const looksIn100ms = async (where: string, before: (exits: ExitWatch, id: SandboxId) => void): Promise<number> => {
    const clock = new FakeClock(1_000_000);
    const exits = new ExitWatch(clock);
    const id = newSandboxId();
    let looks = 0;
    let alive = true;
    before(exits, id);
    const waiting = exits.wait(id, where, () => (++looks, !alive), never);
    await clock.advance(100);
    const seen = looks;
    alive = false;
    await clock.advance(2_000);
    await waiting;
    return seen;
  };
  expect(await looksIn100ms(rarely, () => undefined)).toBe(2);
  expect(await looksIn100ms(rarely, (exits, id) => exits.hurry(id))).toBeGreaterThan(10);
  expect(await looksIn100ms(recorded, () => undefined)).toBeGreaterThan(10);
});

test('a directory that is not there is no reason not to wait', async () => {
  let looks = 0;
  await new ExitWatch(systemClock).wait(newSandboxId(), join(directory, 'none'), () => ++looks > 3, never);
  expect(looks).toBeGreaterThan(3);
});

test('several wait for one; who gives up does not end the waiting of the others', async () => {
  const exits = new ExitWatch(systemClock);
  const id = newSandboxId();
  let alive = true;
  const impatient = new AbortController();
  const first = exits.wait(id, directory, () => !alive, impatient.signal);
  const second = exits.wait(id, directory, () => !alive, never);
  impatient.abort(new Error('enough'));
  await expect(first).rejects.toThrow('enough');
  alive = false;
  exits.hurry(id);
  await second;
});
