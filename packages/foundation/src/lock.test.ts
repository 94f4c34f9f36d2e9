import { spawn } from 'node:child_process';
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

  test('a directory that is not there is refused with what to do', () => {
    expect(() => lockDirectory(join(directory, 'missing'), 'agent')).toThrowError(expect.objectContaining({ code: 'invalid-config' }));
  });
});
