import type { StatsFs } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { DroverError, errnoOf, formatBytes } from '@drover/foundation';
import { fullFreeBytes, fullFreeShare } from '../limits.ts';
import type { Finding } from '../finding.ts';

/** What a file system has run out of; undefined while it has blocks and inodes. */
export function fullnessOf({ blocks, bavail, bsize, files, ffree }: StatsFs): 'disk' | 'inodes' | undefined {
  if (bavail * bsize < Math.min(fullFreeBytes, blocks * bsize * fullFreeShare)) return 'disk';
  // A file system that makes inodes on demand reports none.
  return files > 0 && ffree < files * fullFreeShare ? 'inodes' : undefined;
}

/**
 * The error for a write to a full file system of the host.
 * @param directory a directory of that file system
 * @param what what could not be done: "the image NAME does not fit"
 */
export async function hostDiskFull(directory: string, what: string, cause: unknown): Promise<DroverError> {
  const disk = await statfs(directory);
  const { bavail, blocks, bsize } = disk;
  const left = fullnessOf(disk) === 'inodes' ? 'no inode' : formatBytes(bavail * bsize);
  return new DroverError(
    'disk-full',
    `${what}: the host's disk that holds ${directory} is full (${left} free of ${formatBytes(blocks * bsize)})`,
    { hint: 'remove images (drover image prune), sandboxes or volumes on that host, or make its disk larger', cause },
  );
}

/** The free space of a file system, for a person. */
export function freeOf({ bavail, blocks, bsize, files, ffree }: StatsFs): string {
  return `${formatBytes(bavail * bsize)} of ${formatBytes(blocks * bsize)}${files > 0 ? ` and ${ffree} inodes` : ''} free`;
}

/** Checks for `drover doctor` that the disk of a directory is not full. A directory that does not exist yet passes. */
export async function checkDisk(directory: string): Promise<Finding> {
  const subject = 'disk';
  let disk: StatsFs;
  try {
    disk = await statfs(directory);
  } catch (error) {
    return { level: 'ok', subject, message: `${directory} does not exist yet (${errnoOf(error) ?? String(error)})`, hint: '' };
  }
  const free = freeOf(disk);
  const full = fullnessOf(disk);
  if (full === undefined) return { level: 'ok', subject, message: `${directory}: ${free}`, hint: '' };
  return {
    level: 'problem',
    subject,
    message: `the disk that holds ${directory} (images, volumes and files of sandboxes) is full: ${free}`,
    hint: 'remove images (drover image prune), sandboxes or volumes on that host, or make its disk larger',
  };
}
