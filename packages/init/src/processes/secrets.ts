import { closeSync, fchownSync, openSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DroverError, reasonOf } from '@drover/foundation';
import { secretsDirectory, type SecretFile } from '../config.ts';
import { lookUpUser } from './users.ts';

/** Linux, include/uapi/linux/magic.h. */
const TMPFS_MAGIC = 0x01021994;

/**
 * Writes the secrets for the workload: one file each, mode 0400, owned by the main process's user. All of them or none.
 * @throws {DroverError} runtime-failed when the directory is no tmpfs, so that none is ever written to a disk
 */
export function writeSecrets(secrets: readonly SecretFile[], user: string, directory = secretsDirectory): void {
  if (secrets.length === 0) return;
  const { uid, gid } = lookUpUser(user);
  try {
    if (statfsSync(directory).type !== TMPFS_MAGIC) {
      throw new DroverError('runtime-failed', `${directory} is no tmpfs, and secrets are not written to a disk`);
    }
    for (const { name, value } of secrets) {
      const file = openSync(join(directory, name), 'wx', 0o400);
      try {
        writeFileSync(file, Buffer.from(value, 'base64'));
        fchownSync(file, uid, gid);
      } finally {
        closeSync(file);
      }
    }
  } catch (error) {
    if (error instanceof DroverError) throw error;
    for (const { name } of secrets) rmSync(join(directory, name), { force: true });
    throw new DroverError('runtime-failed', `the secrets cannot be put into ${directory}: ${reasonOf(error)}`, {
      cause: error,
    });
  }
}
