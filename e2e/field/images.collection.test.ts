import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rm, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  collectImages,
  command,
  ImageStore,
  imageKeptFullDiskMs,
  imageKeptNoSpaceMs,
  requireTools,
  temporaryDirectory,
  type PullProgress,
} from '@drover/agent/images/testing';
import { FakeClock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';

const mebibyte = 1024 ** 2;

/** R-15, on a real file system with little space. */
describe('R-15: on a disk of 64 MiB', () => {
  let directory: string;
  let disk: string;
  let clock: FakeClock;
  let store: ImageStore;
  let lifetime: AbortController;

  beforeEach(async () => {
    requireTools(['/usr/sbin/mkfs.ext4', 'e2fsprogs'], ['/usr/bin/umoci', 'umoci']);
    directory = await temporaryDirectory();
    disk = join(directory, 'disk');
    await mkdir(disk);
    await command('truncate', '-s', '64M', `${disk}.img`);
    await command('mkfs.ext4', '-q', '-F', '-m', '0', '-O', '^has_journal', `${disk}.img`);
    await command('mount', '-o', 'loop', `${disk}.img`, disk);
    clock = new FakeClock();
    lifetime = new AbortController();
    store = new ImageStore({ directory: join(disk, 'images'), clock, logger: silentLogger, signal: lifetime.signal });
    await store.start();
  });
  afterEach(async () => {
    lifetime.abort();
    await store.stopped();
    await command('umount', disk);
    await rm(directory, { recursive: true, force: true });
  });

  /** Makes an image with one incompressible file of the given size. */
  const imageOf = async (name: string, bytes: number): Promise<string> => {
    const layout = join(directory, `layout-${name}`);
    await command('umoci', 'init', '--layout', layout);
    await command('umoci', 'new', '--image', `${layout}:x`);
    await writeFile(join(directory, name), randomBytes(bytes));
    await command('umoci', 'insert', '--image', `${layout}:x`, join(directory, name), '/file');
    return `oci:${layout}:x`;
  };
  const ensure = async (image: string, onProgress?: (progress: PullProgress) => void) =>
    await store.ensure(image, { signal: lifetime.signal, ...(onProgress !== undefined && { onProgress }) });
  const images = async (): Promise<string[]> => (await store.list()).map(({ reference }) => reference).sort();
  /** Runs one round of the agent's garbage collection. */
  const collectGarbage = async (): Promise<void> => {
    const end = new AbortController();
    const round = collectImages({ images: store, directory: disk, logger: silentLogger, signal: end.signal, clock });
    await expect.poll(() => clock.sleeping).toBeGreaterThan(0);
    end.abort();
    await round;
  };

  test('an image that does not fit replaces unused ones, and never one that a sandbox uses', async () => {
    const [held, unused, large] = [
      await imageOf('held', 12 * mebibyte),
      await imageOf('unused', 20 * mebibyte),
      await imageOf('large', 35 * mebibyte),
    ];
    const { digest, layers } = await ensure(held);
    await store.hold(digest, 'sandbox');
    await ensure(unused);
    await clock.advance(imageKeptNoSpaceMs);
    const heard: string[][] = [[], []];
    await Promise.all(heard.map(async (messages) => await ensure(large, ({ message }) => messages.push(message))));
    expect(await images()).toEqual([held, large].sort());
    expect((await readFile(join(layers[0] as string, 'file'))).equals(await readFile(join(directory, 'held')))).toBe(true);
    for (const messages of heard) {
      expect(messages).toContain('the disk is full: removing images that no sandbox uses');
      expect(messages.at(-1)).toBe(`${large} is ready`);
    }
  });

  test('with no unused image, the pull fails and names the full disk', async () => {
    const [held, large] = [await imageOf('held', 20 * mebibyte), await imageOf('large', 50 * mebibyte)];
    const { digest } = await ensure(held);
    await store.hold(digest, 'sandbox');
    await clock.advance(imageKeptNoSpaceMs);
    await expect(ensure(large)).rejects.toMatchObject({ code: 'disk-full', message: expect.stringContaining(join(disk, 'images')) });
    expect(await images()).toEqual([held]);
    // The failed attempt takes no space.
    const { bavail, bsize } = await statfs(disk);
    expect(bavail * bsize).toBeGreaterThan(35 * mebibyte);
  });

  test('an image that was unused for an hour is removed from a nearly full disk, and stays on other disks', async () => {
    const [held, unused] = [await imageOf('held', 12 * mebibyte), await imageOf('unused', 12 * mebibyte)];
    const { digest } = await ensure(held);
    await store.hold(digest, 'sandbox');
    await ensure(unused);
    await clock.advance(imageKeptFullDiskMs + 1);
    await collectGarbage();
    expect(await images()).toEqual([held, unused].sort());
    const { bavail, bsize } = await statfs(disk);
    await writeFile(join(disk, 'other'), randomBytes(bavail * bsize - 2 * mebibyte));
    await collectGarbage();
    expect(await images()).toEqual([held]);
  });
});
