import { randomBytes } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import { dirname, join, basename } from 'node:path';
import { buffer } from 'node:stream/consumers';

interface WriteOptions {
  /** Default 0600. */
  readonly mode?: number;
  /** False: a crash of the process leaves a whole file; a power cut may leave the old file or none. Default true. */
  readonly sync?: boolean;
}

/**
 * Writes a file so that a crash leaves either the old content or the new: temporary file, fsync, rename, fsync of the directory.
 */
export async function writeFileAtomic(path: string, data: string | Uint8Array, options: number | WriteOptions = {}): Promise<void> {
  const { mode = 0o600, sync = true } = typeof options === 'number' ? { mode: options } : options;
  const temporary = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString('hex')}.tmp`);
  try {
    const file = await open(temporary, 'wx', mode);
    try {
      await file.writeFile(data);
      if (sync) await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  if (!sync) return;
  const directory = await open(dirname(path), 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/**
 * Reads a file that a person named, up to one byte over `maxBytes`: a device such as /dev/zero has no end.
 * @throws the system's error
 */
export async function readAtMost(path: string, maxBytes: number): Promise<Buffer> {
  const file = await open(path, 'r');
  return await buffer(file.createReadStream({ end: maxBytes }));
}
