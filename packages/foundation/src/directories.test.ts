import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { makeDirectories, makeDirectoriesSync, prepareDirectory, removeTree } from './index.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-directories-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

describe.each([
  ['makeDirectories', makeDirectories],
  ['makeDirectoriesSync', async (path: string, mode?: number) => await Promise.resolve(makeDirectoriesSync(path, mode))],
] as const)('%s', (_, make) => {
  test('makes a directory with its parents and mode, and accepts one that exists', async () => {
    const path = join(directory, 'a', 'b', 'c');
    await make(path, 0o700);
    await make(path, 0o755);
    expect((await stat(join(directory, 'a'))).mode & 0o777).toBe(0o700);
  });

  test('accepts a link to a directory', async () => {
    await symlink(directory, join(directory, 'link'));
    await make(join(directory, 'link', 'a'));
    expect(await readdir(directory)).toContain('a');
  });

  test.each(['/proc/x', '/proc/x/y', '/proc/self/x'])('rejects %s with ENOENT', async (path) => {
    await expect((async () => await make(path))()).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('rejects a path through a file, or to a link without a target', async () => {
    await writeFile(join(directory, 'file'), '');
    await symlink(join(directory, 'missing'), join(directory, 'dangling'));
    await expect((async () => await make(join(directory, 'file')))()).rejects.toMatchObject({ code: 'EEXIST' });
    await expect((async () => await make(join(directory, 'file', 'a')))()).rejects.toMatchObject({ code: 'ENOTDIR' });
    await expect((async () => await make(join(directory, 'dangling')))()).rejects.toMatchObject({ code: 'EEXIST' });
  });
});

test('a directory that files can be kept in is left as it was', async () => {
  await prepareDirectory(join(directory, 'a', 'b'), 'data directory', '--data');
  expect(await readdir(join(directory, 'a', 'b'))).toEqual([]);
});

test('a read-only, a full and a foreign file system are named', async () => {
  const [readOnly, full] = [join(directory, 'read-only'), join(directory, 'full')];
  for (const path of [readOnly, full]) await mkdir(path);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'ro', 'tmpfs', readOnly]);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4k', 'tmpfs', full]);
  try {
    await writeFile(join(full, 'file'), Buffer.alloc(4096));
    const refused = async (path: string) => await prepareDirectory(path, 'state directory', '--state').catch((error: unknown) => error);
    const says = (path: string, reason: string) => ({
      message: `the state directory ${path} cannot be used: ${reason}`,
      hint: 'choose another with --state',
    });
    expect(await refused(readOnly)).toMatchObject({ code: 'invalid-argument', ...says(readOnly, 'its file system is read-only') });
    expect(await refused(join(readOnly, 'a'))).toMatchObject(says(join(readOnly, 'a'), 'its file system is read-only'));
    expect(await refused(full)).toMatchObject({ code: 'disk-full', ...says(full, 'its file system is full') });
    expect(await refused('/proc/x')).toMatchObject(says('/proc/x', 'its file system takes no new files'));
    expect(await refused('/proc')).toMatchObject(says('/proc', 'its file system takes no new files'));
  } finally {
    for (const path of [readOnly, full]) execFileSync('umount', [path]);
  }
});

describe('removeTree', () => {
  test('removes what Node.js cannot name: directories below each other with a path of more than PATH_MAX', async () => {
    const tree = join(directory, 'tree');
    await mkdir(tree);
    // Each chain of directories is moved to the end of another, as paths of its whole length cannot be given.
    const chain = async (top: string): Promise<string> => {
      const end = join(directory, top, ...Array.from({ length: 9 }, () => 'd'.repeat(200)));
      await mkdir(end, { recursive: true });
      await writeFile(Buffer.concat([Buffer.from(`${end}/`), Buffer.from([0x66, 0xff])]), '');
      return end;
    };
    for (const branch of ['one', 'two']) {
      let last = await chain('last');
      for (let i = 0; i < 5; i++) {
        const end = await chain(`more${i}`);
        await rename(join(directory, i === 0 ? 'last' : `more${i - 1}`), join(end, 'below'));
        last = join(directory, `more${i}`);
      }
      await rename(last, join(tree, branch));
    }
    await expect(rm(tree, { recursive: true })).rejects.toMatchObject({ code: 'ENAMETOOLONG' });
    await removeTree(tree);
    expect(await readdir(directory)).toEqual([]);
  });

  test('follows no link, and takes what does not exist as removed', async () => {
    await mkdir(join(directory, 'kept', 'inner'), { recursive: true });
    await symlink('kept', join(directory, 'link'));
    await removeTree(join(directory, 'link'));
    await removeTree(join(directory, 'nothing'));
    expect(await readdir(join(directory, 'kept'))).toEqual(['inner']);
  });
});
