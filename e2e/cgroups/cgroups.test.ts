import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { GuestResult } from './guest.ts';
import { buildGuest, runMachine } from './machine.ts';

const combinations = [
  ['v2', 'runc', 'nothing'],
  ['v2', 'crun', 'nothing'],
  ['v2', 'runc', 'standby'],
  ['v1', 'crun', 'nothing'],
  ['v1', 'runc', 'standby'],
] as const;

/**
 * Real sandboxes on each cgroup layout with each OCI runtime of Debian, independent of this machine's layout. The layout belongs to the
 * whole kernel, so they run in a virtual machine.
 */
describe('R-5, R-10: limits on hosts with other cgroup layouts', () => {
  let directory: string;
  let results: readonly GuestResult[];

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'drover-vm-'));
    await buildGuest(directory);
    const console_ = await runMachine(directory, 900);
    results = [...console_.matchAll(/^drover-result (\{.*\})\r?$/gm)].map(([, json = '']) => JSON.parse(json) as GuestResult);
    if (results.length !== combinations.length) throw new Error(`not every combination has a result: ${console_.slice(-4000)}`);
  }, 920_000);
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  const of = (layout: string, program: string, madeOf: string): GuestResult => {
    const result = results.find((one) => one.layout === layout && one.program === program && one.madeOf === madeOf);
    if (result === undefined) throw new Error(`no result for ${program} on ${layout}, made of ${madeOf}`);
    return result;
  };

  describe.each(combinations)('cgroup %s with %s, made of %s', (layout, program, madeOf) => {
    test('the host can run sandboxes, and reports its layout', () => {
      const { findings, error } = of(layout, program, madeOf);
      expect(error).toBeUndefined();
      expect(findings.filter(({ level }) => level === 'problem')).toEqual([]);
      expect(findings.find(({ subject }) => subject === 'cgroups')?.message).toMatch(new RegExp(`^${layout}, `));
    });

    test('exhausted memory ends the sandbox, with that reason', () => {
      expect(of(layout, program, madeOf).outOfMemory).toEqual({ phase: 'ended', outOfMemory: true, exitCode: 137 });
    });

    test('processes are limited, and the command fails on its own', () => {
      expect(of(layout, program, madeOf).pids).toMatchObject({ outOfMemory: false, exitCode: 2 });
    });

    test('a busy loop limited to a fifth of a CPU gets that share', () => {
      const share = of(layout, program, madeOf).cpuShare ?? 0;
      expect(share).toBeGreaterThan(0);
      expect(share).toBeLessThan(0.3);
    });

    test('a paused sandbox uses no CPU', () => {
      expect(of(layout, program, madeOf).pause).toEqual({ stoodStill: true, wentOn: true });
    });

    test("a sandbox sees its own limits, with init's allowance, and cannot change them", () => {
      expect(of(layout, program, madeOf).view).toEqual([
        String((64 + 96) * 1024 * 1024),
        String(50 + 16),
        expect.stringMatching(/Read-only file system|Permission denied/),
      ]);
    });

    test('no cgroup is left behind', () => {
      expect(of(layout, program, madeOf).leftover).toEqual([]);
    });
  });
});
