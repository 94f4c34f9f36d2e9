import { mkdtempSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { idleCheckMs, IdleWatch, workloadCpuMs, type Activity } from './idle.ts';

const quiet: Activity = { attached: 0, calls: 0, outputBytes: 0, cpuMs: 0 };

describe('R-20: a sandbox is idle', () => {
  test.each<[string, Partial<Activity>, boolean]>([
    ['when nothing happens', {}, true],
    ['though it uses a little CPU', { cpuMs: 150 }, true],
    ['not while a client is attached', { attached: 1 }, false],
    ['not when a client came and went', { calls: 1 }, false],
    ['not when its command wrote something', { outputBytes: 1 }, false],
    ['not when it used the CPU', { cpuMs: 250 }, false],
  ])('%s', (_, at50s, idle) => {
    const watch = new IdleWatch(60_000, 0, quiet);
    const seen: boolean[] = [];
    for (let now = 10_000; now <= 60_000; now += 10_000) seen.push(watch.check(now, now < 50_000 ? quiet : { ...quiet, ...at50s }));
    expect(seen).toEqual([false, false, false, false, false, idle]);
  });

  test('counted from the last thing that happened', () => {
    const watch = new IdleWatch(20_000, 0, quiet);
    const worked = { ...quiet, cpuMs: 9_000 };
    expect([watch.check(4_000, quiet), watch.check(8_000, worked)]).toEqual([false, false]);
    expect([12_000, 16_000, 20_000, 24_000, 28_000].map((now) => watch.check(now, worked))).toEqual([false, false, false, false, true]);
  });

  test('the time of a pause does not count: init did not run, and the sandbox could not be used', () => {
    const watch = new IdleWatch(20_000, 0, quiet);
    expect([watch.check(4_000, quiet), watch.check(600_000, quiet), watch.check(604_000, quiet)]).toEqual([false, false, false]);
    expect(watch.check(620_000, quiet)).toBe(false);
  });

  test.each([
    [1_000, 500],
    [10_000, 2_000],
    [3_600_000, 10_000],
  ])('idle for %i ms is looked for every %i ms', (idleStopMs, everyMs) => {
    expect(idleCheckMs(idleStopMs)).toBe(everyMs);
  });
});

test('CPU time is that of all processes but init, with those that have ended (proc_pid_stat(5))', () => {
  const proc = mkdtempSync(join(tmpdir(), 'drover-proc-'));
  try {
    const write = (pid: string, stat: string): void => {
      mkdirSync(join(proc, pid));
      writeFileSync(join(proc, pid, 'stat'), stat);
    };
    write('1', '1 (node) S 0 1 1 0 -1 4194560 1 2 3 4 1000 2000 30 4 20 0 1 0 1');
    write('7', '7 (a ) b) R 1 7 7 0 -1 4194560 1 2 3 4 5 6 0 1 20 0 1 0 1');
    mkdirSync(join(proc, '8'));
    mkdirSync(join(proc, 'self'));
    expect(workloadCpuMs(proc, 1)).toBe((34 + 12) * 10);
  } finally {
    rmSync(proc, { recursive: true });
  }
});
