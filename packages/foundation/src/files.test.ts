import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { writeFileAtomic } from './index.ts';

describe('atomic writes', () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'drover-files-'));
  });
  afterEach(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  test('replace the whole file and leave no temporary', async () => {
    const path = join(directory, 'file');
    await writeFile(path, 'old and longer');
    await writeFileAtomic(path, 'new', { mode: 0o640 });
    expect(await readFile(path, 'utf8')).toBe('new');
    expect((await stat(path)).mode & 0o777).toBe(0o640);
    expect(await readdir(directory)).toEqual(['file']);
  });

  test('on a full disk the old file stays whole and nothing else is left', async () => {
    const run = promisify(execFile);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', directory]);
    try {
      const path = join(directory, 'file');
      await writeFile(path, 'old');
      await expect(writeFileAtomic(path, Buffer.alloc(1 << 20))).rejects.toMatchObject({ code: 'ENOSPC' });
      expect(await readFile(path, 'utf8')).toBe('old');
      expect(await readdir(directory)).toEqual(['file']);
    } finally {
      await run('umount', [directory]);
    }
  });
});
