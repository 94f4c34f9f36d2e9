import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import * as linux from './index.ts';

test('the identity of a process is its pid with its start time, and ends with it, also while it is a zombie', async () => {
  const own = linux.processStart(process.pid);
  expect(own).toMatch(/^\d+$/);
  expect(linux.isSameProcess(process.pid, own)).toBe(true);
  expect([linux.isSameProcess(process.pid, '1'), linux.isSameProcess(process.pid, undefined)]).toEqual([false, false]);
  // The shell becomes a program that does not wait for its child.
  const child = spawn('sh', ['-c', 'sleep 0 & echo $!; exec sleep 60'], { stdio: ['ignore', 'pipe', 'ignore'] });
  onTestFinished(() => void child.kill('SIGKILL'));
  const zombie = Number(String((await once(child.stdout, 'data'))[0]));
  await vi.waitFor(() => expect(linux.isZombie(zombie)).toBe(true));
  expect(linux.processStart(zombie)).toBeUndefined();
  expect(linux.isZombie(process.pid)).toBe(false);
});

test('processes are found by an argument, and their arguments are complete', async () => {
  const mark = `mark-${process.pid} with a space`;
  const child = spawn('sh', ['-c', 'read -r _', mark, ''], { stdio: ['pipe', 'ignore', 'ignore'] });
  onTestFinished(() => void child.kill('SIGKILL'));
  await vi.waitFor(() => expect(linux.processesWithArgument(mark)).toEqual([child.pid]));
  expect(linux.argumentsOf(child.pid ?? 0)).toEqual(['sh', '-c', 'read -r _', mark, '']);
  expect(linux.ownChildren()).toContain(child.pid);
});

test('facts about this machine and process', () => {
  expect(linux.bootId()).toMatch(/^[0-9a-f-]{36}$/);
  expect(linux.availableMemory()).toBeGreaterThan(1024 ** 2);
  expect(linux.openFilesLimit()).toBeGreaterThan(2);
  expect(linux.interfaceNames()).toContain('lo');
  expect([linux.hasFileSystem('proc'), linux.hasFileSystem('no-such')]).toEqual([true, false]);
  expect([linux.isKernelSince(2, 6), linux.isKernelSince(1000, 0)]).toEqual([true, false]);
  expect([linux.isMounted('/proc'), linux.isMounted('/no/such')]).toEqual([true, false]);
});

describe('formats of /proc', () => {
  test('a mount point has its spaces and backslashes back', () => {
    const line = '36 35 98:0 / /a\\040b\\134c rw,noatime master:1 - cgroup none rw,memory';
    expect(linux.parseMountTable(`${line}\n`)).toEqual([{ target: '/a b\\c', type: 'cgroup', options: ['rw', 'memory'] }]);
  });

  test('the ranges of a user namespace', () => {
    expect(linux.parseIdMap('         0 1000000000      65536\n')).toEqual([{ first: 0, last: 65_535 }]);
    expect(linux.parseIdMap('')).toEqual([]);
  });
});
