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
    const first = await lockDirectory(directory, 'control plane');
    await symlink(directory, `${directory}-link`);
    try {
      await expect(lockDirectory(`${directory}-link`, 'control plane')).rejects.toMatchObject({
        code: 'failed-precondition',
        message: expect.stringContaining('already running'),
      });
    } finally {
      await rm(`${directory}-link`);
    }
    await first.release();
    await (await lockDirectory(directory, 'control plane')).release();
  });

  test('a holder that was killed -9 holds nothing any more', async () => {
    const script = `import { lockDirectory } from '@drover/foundation'; await lockDirectory(${JSON.stringify(directory)}, 'agent'); console.log('held'); setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--conditions=development', '--input-type=module', '-e', script], {
      cwd: import.meta.dirname,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(child.stdout, 'data');
    await expect(lockDirectory(directory, 'agent')).rejects.toMatchObject({ code: 'failed-precondition' });
    child.kill('SIGKILL');
    await once(child, 'exit');
    await (await lockDirectory(directory, 'agent')).release();
  });
});
