import { mkdir, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isMounted } from '@drover/linux';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { VolumeStore } from './volumes.ts';

const size = 16 * 1024 ** 2;
let directory: string;
let volumes: VolumeStore;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-volumes-'));
  volumes = new VolumeStore(directory);
});
afterEach(async () => {
  await volumes.remove('data');
  await rm(directory, { recursive: true });
});

test('R-18: a volume whose making was interrupted is made by the next attempt', async () => {
  await mkdir(join(directory, 'images'));
  await writeFile(join(directory, 'images', 'data.img.new'), 'as far as mkfs came');
  await volumes.create('data', size);
  // Killed after the rename: the attempt after that finds the file system as mkfs left it.
  await mkdir(join(directory, 'mounts', 'data', 'lost+found'));
  await volumes.create('data', size);
  const mountPoint = await volumes.mount('data');
  expect(await readdir(mountPoint)).toEqual([]);
  expect((await stat(mountPoint)).mode & 0o777).toBe(0o777);
  expect(await readdir(join(directory, 'images'))).toEqual(['data.img']);
});

test('R-18: a volume whose file was deleted is refused by name, can be removed, and is created again', async () => {
  await volumes.create('data', size);
  await rm(join(directory, 'images', 'data.img'));
  await expect(volumes.mount('data')).rejects.toMatchObject({ code: 'volume-not-found', message: expect.stringContaining('data') });
  expect(await volumes.list()).toEqual([]);
  await volumes.remove('data');
  expect(isMounted(join(directory, 'mounts', 'data'))).toBe(false);
  await volumes.create('data', size);
  expect(await volumes.list()).toMatchObject([{ name: 'data', sizeBytes: size }]);
});

test('R-18: users of the host do not reach the volumes, which every user of a sandbox can write to', async () => {
  const inside = join(directory, 'volumes');
  const closed = new VolumeStore(inside);
  await closed.create('data', size);
  expect((await stat(inside)).mode & 0o777).toBe(0o700);
  await closed.remove('data');
});
