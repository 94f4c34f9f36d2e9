import { open, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { DroverError, errnoOf } from '@drover/foundation';
import { isMounted, mountProgram, runProgram } from '@drover/linux';
import { formatDiskMs, minDiskBytes } from '../limits.ts';

export interface Disk {
  /** The file that contains the file system. */
  readonly image: string;
  readonly mountPoint: string;
}

/**
 * Mounts a file system of a bounded size: a sparse file with ext4, made if it does not exist. When it is full, writes fail with ENOSPC. It
 * occupies as much of the host's disk as has been written to it.
 *
 * @param keep `journal`: it survives a power cut; `no-journal`: it is as short-lived as its sandbox, and made in milliseconds
 * @throws {DroverError} missing-component without mkfs.ext4; runtime-failed
 */
export async function makeDisk({ image, mountPoint }: Disk, bytes: number, keep: 'journal' | 'no-journal'): Promise<void> {
  if (isMounted(mountPoint)) return;
  if (!(await exists(image))) await format(image, bytes, keep);
  await mountDisk({ image, mountPoint });
}

/** Mounts an existing disk. @returns false when there is none @throws {DroverError} runtime-failed */
export async function mountDisk({ image, mountPoint }: Disk): Promise<boolean> {
  if (isMounted(mountPoint)) return true;
  if (!(await exists(image))) return false;
  await mountProgram('mount', ['-o', 'loop,nodev', '--', image, mountPoint]);
  return true;
}

/** Unmounts a disk if it is mounted. @throws {DroverError} runtime-failed */
export async function unmountDisk({ mountPoint }: Pick<Disk, 'mountPoint'>): Promise<void> {
  if (isMounted(mountPoint)) await mountProgram('umount', ['-l', '--', mountPoint]);
}

/**
 * Whether a disk is mounted on a directory. For frequent checks: unlike `isMounted`, it does not read the list of all mounts, and so does not
 * see a bind mount of the same file system.
 */
export async function isDiskRoot(path: string): Promise<boolean> {
  try {
    const [own, above] = await Promise.all([stat(path), stat(dirname(path))]);
    return own.dev !== above.dev;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
}

async function format(image: string, bytes: number, keep: 'journal' | 'no-journal'): Promise<void> {
  const temporary = `${image}.new`;
  await rm(temporary, { force: true });
  const file = await open(temporary, 'wx', 0o600);
  try {
    await file.truncate(Math.max(bytes, minDiskBytes));
  } finally {
    await file.close();
  }
  // No reserved blocks; the kernel writes the tables while the disk is in use.
  const journal = keep === 'journal' ? [] : ['-O', '^has_journal'];
  const args = ['-q', '-F', '-m', '0', ...journal, '-E', 'lazy_itable_init=1,lazy_journal_init=1,nodiscard', temporary];
  try {
    const { code, stderr } = await runProgram('mkfs.ext4', args, { timeoutMs: formatDiskMs });
    if (code !== 0) throw new Error(stderr.trim() || `it ended with ${code}`);
  } catch (error) {
    await rm(temporary, { force: true });
    if (errnoOf(error) === 'ENOENT') {
      throw new DroverError('missing-component', 'mkfs.ext4 is not installed, and a disk limit or a volume needs it', {
        hint: 'apt-get install e2fsprogs',
        cause: error,
      });
    }
    throw new DroverError('runtime-failed', `making a disk failed: ${String(error)}`, { cause: error });
  }
  await rename(temporary, image);
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    (error: unknown) => {
      if (errnoOf(error) === 'ENOENT') return false;
      throw error;
    },
  );
}
