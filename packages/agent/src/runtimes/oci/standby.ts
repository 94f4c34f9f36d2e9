import { chmod, lstat, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { secretsDirectory } from '@drover/init';
import type { CreateRequest, Limits } from '../runtime.ts';
import type { Attached } from './binding-thread.ts';
import { MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, type Mounts } from './mounts.ts';

/** What a standby's root has, and what it is given to be a sandbox: see binding.ts. */

/** It has no limits before it is somebody's. */
export const noLimits: Limits = { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, pids: 0 };
export const runMount = '/.drover/run';
/** What the runtime program mounted, and stays. */
export const standbyKept = ['/proc', '/sys', '/dev', '/.drover'] as const;
/** Where the next root is put together. */
export const standbyPlace = '/next';

/** The root of all standbys, which none of them can write to. */
export function standbyRoot(stateDirectory: string): string {
  return join(stateDirectory, 'standby-root');
}

export async function makeStandbyRoot(stateDirectory: string): Promise<void> {
  const root = standbyRoot(stateDirectory);
  for (const path of ['/', standbyPlace, ...standbyKept]) {
    await mkdir(join(root, path), { recursive: true });
    // Whatever this process's umask is: the root of a sandbox is nobody to the host.
    await chmod(join(root, path), 0o755);
  }
}

const apart = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;

/**
 * Makes, one after another, the mounts of a sandbox that the runtime program would have made beside those that every one has, with the same
 * options (spec.ts). The descriptors are the caller's.
 * @param volumes where each of `request.mounts` is to be cloned from
 */
export function sandboxMounts(
  request: CreateRequest,
  volumes: readonly string[],
  detached: NonNullable<Mounts['detached']>,
  uid: number,
): readonly (() => Promise<Attached>)[] {
  const { runDirectory, secretsBytes: bytes } = request;
  const run = async (): Promise<Attached> =>
    await Promise.resolve({ path: runMount, mount: detached.clone(runDirectory, apart | MOUNT_ATTR_NOEXEC), kind: 'directory' });
  const secrets = async (): Promise<Attached> => {
    const mount = detached.tmpfs({ bytes: bytes ?? 0, mode: '755', uid }, apart | MOUNT_ATTR_NOEXEC);
    return await Promise.resolve({ path: secretsDirectory, mount, kind: 'directory' });
  };
  const bound = request.mounts.map(({ target: path, source, readOnly }, index) => async (): Promise<Attached> => {
    const from = volumes[index] ?? source;
    const kind = (await lstat(from)).isDirectory() ? 'directory' : 'file';
    return { path, mount: detached.clone(from, readOnly ? apart | MOUNT_ATTR_RDONLY : apart), kind };
  });
  return [run, ...bound, ...(bytes === undefined ? [] : [secrets])];
}
