import { chmod, open, rename, rm, stat } from 'node:fs/promises';
import { DroverError, errnoOf } from '@drover/foundation';
import { mountProgramMs, programOutputBytes } from '../../limits.ts';
import { runProgram } from '../../programs/index.ts';
import type { Layout } from './layout.ts';
import { isMounted, type Mounts } from './mounts.ts';

/**
 * A disk of the sandbox's own, of `bytes`: a sparse file with ext4 on it, mounted where its writable layers will be. Full, writes inside
 * fail with ENOSPC; it takes of the host's disk what is written to it. Made once, mounted when it is not.
 *
 * @throws {DroverError} missing-component without mkfs.ext4, runtime-failed
 */
export async function makeDisk(mounts: Mounts, layout: Layout, bytes: number): Promise<void> {
  if (isMounted(layout.writable)) return;
  if (!(await exists(layout.diskImage))) {
    const temporary = `${layout.diskImage}.new`;
    await rm(temporary, { force: true });
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.truncate(Math.max(bytes, minDiskBytes));
    } finally {
      await file.close();
    }
    // No journal and tables made late: it lives as long as its sandbox, and is made in milliseconds.
    const args = ['-q', '-F', '-m', '0', '-O', '^has_journal', '-E', 'lazy_itable_init=1,nodiscard', temporary];
    try {
      const { code, stderr } = await runProgram('mkfs.ext4', args, { timeoutMs: mountProgramMs, maxOutputBytes: programOutputBytes });
      if (code !== 0) throw new Error(stderr.trim() || `it ended with ${code}`);
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') {
        throw new DroverError('missing-component', 'mkfs.ext4 is not there, and a disk limit needs it', {
          hint: 'apt-get install e2fsprogs',
          cause: error,
        });
      }
      throw new DroverError('runtime-failed', `making the sandbox's disk failed: ${String(error)}`, { cause: error });
    }
    await rename(temporary, layout.diskImage);
  }
  await mounts.loop(layout.diskImage, layout.writable);
  await chmod(layout.writable, 0o700);
}

/** ext4 needs some room for itself. */
const minDiskBytes = 16 * 1024 * 1024;

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
}
