import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { oomClaimMs } from '../limits.ts';
import { OomKills } from './oom-kills.ts';

let root: string;
let now: number;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'drover-oom-'));
  now = 0;
});
afterEach(async () => await rm(root, { recursive: true }));

describe.each([
  ['cgroup v2', 'memory.events', (kills: number) => `low 0\nhigh 0\nmax 12\noom 3\noom_kill ${kills}\noom_group_kill 0\n`],
  ['cgroup v1', 'memory/memory.oom_control', (kills: number) => `oom_kill_disable 0\nunder_oom 0\noom_kill ${kills}\n`],
])('%s', (_, name, text) => {
  const count = async (kills: number): Promise<void> => {
    await mkdir(dirname(join(root, name)), { recursive: true });
    await writeFile(join(root, name), text(kills));
  };

  test('each kill is attributed once', async () => {
    await count(2);
    const kills = new OomKills(root, () => now);
    expect(kills.claim()).toBe(false);
    await count(4);
    expect([kills.claim(), kills.claim(), kills.claim()]).toEqual([true, true, false]);
  });

  test('a kill that was seen a while ago is attributed to no process', async () => {
    await count(0);
    const kills = new OomKills(root, () => now);
    await count(1);
    kills.count();
    now += oomClaimMs + 1;
    expect(kills.claim()).toBe(false);
  });
});

test('without a cgroup no process was killed for its memory', () => {
  expect(new OomKills(root, () => now).claim()).toBe(false);
});
