import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { newSandboxId } from '@drover/foundation';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cgroups, parseMountTable } from './index.ts';

const id = newSandboxId();
let root: string;
/** A line of /proc/self/mountinfo. */
const mount = (path: string, type: string, options: string): string => `30 20 0:1 / ${path} rw,relatime - ${type} ${type} ${options}`;

/** The kernel's files on hosts that this machine is not; the agent's conformance suite runs on the real ones. */
async function put(path: string, text: string): Promise<void> {
  await mkdir(join(path, '..'), { recursive: true });
  await writeFile(path, text);
}

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'drover-cgroup-'));
});
afterAll(async () => {
  await rm(root, { recursive: true, force: true });
});

describe('R-10: limits, kills and usage are read on every layout of cgroups', () => {
  test.each([
    ['v2', [mount('/c', 'cgroup2', 'rw,nsdelegate')]],
    ['v1', [mount('/c/memory', 'cgroup', 'rw,memory'), mount('/c/cpu', 'cgroup', 'rw,cpu,cpuacct')]],
    ['hybrid', [mount('/c/memory', 'cgroup', 'rw,memory'), mount('/c/unified', 'cgroup2', 'rw')]],
  ])('%s is recognised', (kind, lines) => {
    expect(new Cgroups('/drover', parseMountTable(lines.join('\n'))).kind).toBe(kind);
  });

  test('v2: one hierarchy has it all', async () => {
    const cgroups = new Cgroups('/drover', parseMountTable(mount(root, 'cgroup2', 'rw')));
    const path = join(root, 'drover', id);
    await put(join(root, 'cgroup.controllers'), 'cpuset cpu io memory pids\n');
    await put(join(path, 'memory.events'), 'low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n');
    await put(join(path, 'cgroup.freeze'), '1\n');
    await put(join(path, 'cpu.stat'), 'usage_usec 1234\nuser_usec 1000\n');
    await put(join(path, 'memory.current'), '4096\n');
    await put(join(path, 'pids.current'), '3\n');
    expect(cgroups.missing()).toEqual([]);
    expect(cgroups.oomKills(id)).toBe(1);
    expect(cgroups.isFrozen(id)).toBe(true);
    expect(cgroups.stats(id)).toEqual({ cpuUsec: 1234, memoryBytes: 4096, pids: 3 });
    await cgroups.thaw(id);
    expect(cgroups.isFrozen(id)).toBe(false);
  });

  test('missing names the controllers that are absent', async () => {
    await put(join(root, 'cgroup.controllers'), 'cpu pids\n');
    expect(new Cgroups('/drover', parseMountTable(mount(root, 'cgroup2', 'rw'))).missing()).toEqual(['memory']);
    expect(new Cgroups('/drover', parseMountTable(mount('/c/memory', 'cgroup', 'rw,memory'))).missing()).toEqual([
      'cpu',
      'pids',
      'freezer',
    ]);
    expect(new Cgroups('/drover', parseMountTable('')).missing()).toEqual(['memory', 'cpu', 'pids']);
  });

  test('a cgroup that does not exist has no kills, is not frozen, and has no usage', () => {
    const cgroups = new Cgroups('/drover', parseMountTable(mount(root, 'cgroup2', 'rw')));
    const absent = newSandboxId();
    expect([cgroups.oomKills(absent), cgroups.isFrozen(absent), cgroups.stats(absent)]).toEqual([0, false, undefined]);
  });
});
