import { execFileSync } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { rm, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { freeOf } from './full.ts';
import { checkDisk, fullnessOf, hostDiskFull, isDiskRoot, makeDisk, unmountDisk } from './index.ts';

const mebibyte = 1024 ** 2;
const disk = { type: 0, bsize: 4096, frsize: 4096, blocks: 100_000, bfree: 50_000, bavail: 50_000, files: 1000, ffree: 500 };

test.each([
  ['with room', {}, undefined],
  ['without blocks', { bavail: 0 }, 'disk'],
  ['with less than 1 % of its blocks', { bavail: 900 }, 'disk'],
  ['of terabytes with 2 GiB free', { blocks: 2 ** 30, bavail: 2 ** 19 }, undefined],
  ['without inodes', { ffree: 0 }, 'inodes'],
  ['that makes inodes as they are needed', { files: 0, ffree: 0 }, undefined],
])('a file system %s', (_, change, full) => {
  expect(fullnessOf({ ...disk, ...change })).toBe(full);
});

test('freeOf counts inodes only where the file system has a fixed number', () => {
  expect(freeOf(disk)).toMatch(/ and 500 inodes free$/);
  expect(freeOf({ ...disk, files: 0, ffree: 0 })).not.toContain('inode');
});

test('R-10: errors and doctor name a full disk of the host, with what to do', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'drover-full-'));
  const mountPoint = join(directory, 'disk');
  execFileSync('mkdir', [mountPoint]);
  onTestFinished(async () => {
    await unmountDisk({ mountPoint });
    await rm(directory, { recursive: true });
  });
  expect(await isDiskRoot(mountPoint)).toBe(false);
  await makeDisk({ image: `${mountPoint}.img`, mountPoint }, 32 * mebibyte, 'no-journal');
  expect(await isDiskRoot(mountPoint)).toBe(true);
  expect(await checkDisk(mountPoint)).toMatchObject({ level: 'ok' });
  const { bavail, bsize } = await statfs(mountPoint);
  writeFileSync(join(mountPoint, 'filled'), Buffer.alloc((bavail - 16) * bsize, 1));
  expect(await checkDisk(mountPoint)).toMatchObject({
    level: 'problem',
    message: expect.stringContaining(mountPoint),
    hint: expect.any(String),
  });
  const error = await hostDiskFull(mountPoint, 'the image x does not fit', undefined);
  expect(error).toMatchObject({
    code: 'disk-full',
    message: expect.stringContaining(`that holds ${mountPoint} is full`),
    hint: expect.any(String),
  });
});
