import { statfs } from 'node:fs/promises';
import { DroverError, formatBytes } from '@drover/foundation';

/**
 * The error for a write on a full file system of the host: which one it is, and what frees it.
 * @param directory on that file system
 * @param what could not be done: "the image NAME does not fit"
 */
export async function hostDiskFull(directory: string, what: string, cause: unknown): Promise<DroverError> {
  const { bavail, blocks, bsize, ffree } = await statfs(directory);
  const left = ffree === 0 ? 'no inode' : formatBytes(bavail * bsize);
  return new DroverError(
    'disk-full',
    `${what}: the host's disk that holds ${directory} is full (${left} free of ${formatBytes(blocks * bsize)})`,
    { hint: 'remove images (drover image prune), sandboxes or volumes on that host, or make its disk larger', cause },
  );
}
