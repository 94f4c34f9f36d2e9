import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { lockDirectory } from './index.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-lock-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

describe('a directory lock', () => {
  test('a second holder is refused, also by another name of the directory, until the first lets go', async () => {
    await symlink(directory, `${directory}-link`);
    try {
      {
        using _ = lockDirectory(directory, 'control plane');
        expect(() => lockDirectory(`${directory}-link`, 'control plane')).toThrowError(
          expect.objectContaining({ code: 'failed-precondition', message: expect.stringContaining('already running') }),
        );
      }
      using _again = lockDirectory(directory, 'control plane');
    } finally {
      await rm(`${directory}-link`);
    }
  });

  test('a holder that was killed -9 holds nothing any more', async () => {
    const script = `import { lockDirectory } from '@drover/foundation'; globalThis.held = lockDirectory(${JSON.stringify(directory)}, 'agent'); console.log('held'); setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--conditions=development', '--input-type=module', '-e', script], {
      cwd: import.meta.dirname,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(child.stdout, 'data');
    expect(() => lockDirectory(directory, 'agent')).toThrowError(expect.objectContaining({ code: 'failed-precondition' }));
    child.kill('SIGKILL');
    await once(child, 'exit');
    using _ = lockDirectory(directory, 'agent');
  });

  test('a file system without locks is named as that, and not as another holder', async () => {
    // Linux has none that can be mounted here: a library makes fcntl(2) report what such a file system does (ENOLCK).
    const library = join(directory, 'no-locks.so');
    const source = `#define _GNU_SOURCE
      #include <errno.h>
      #include <fcntl.h>
      #include <stdarg.h>
      #include <sys/syscall.h>
      #include <unistd.h>
      int fcntl64(int fd, int command, ...) {
        if (command == F_SETLK || command == F_SETLKW) { errno = ENOLCK; return -1; }
        va_list rest;
        va_start(rest, command);
        return syscall(SYS_fcntl, fd, command, va_arg(rest, long));
      }
      int fcntl(int, int, ...) __attribute__((alias("fcntl64")));`;
    execFileSync('gcc', ['-shared', '-fPIC', '-o', library, '-x', 'c', '-'], { input: source });
    const script = `import { lockDirectory } from '@drover/foundation';
      try { lockDirectory(${JSON.stringify(directory)}, 'agent'); } catch (error) { console.log(error.code + ': ' + error.message); }`;
    const printed = execFileSync(process.execPath, ['--conditions=development', '--input-type=module', '-e', script], {
      cwd: import.meta.dirname,
      encoding: 'utf8',
      env: { LD_PRELOAD: library },
    });
    expect(printed).toBe(`invalid-config: the directory ${directory} cannot be used: its file system has no locks\n`);
  });

  test('a directory that is not there is refused with what to do', () => {
    expect(() => lockDirectory(join(directory, 'missing'), 'agent')).toThrowError(expect.objectContaining({ code: 'invalid-config' }));
  });
});
