import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { secretsDirectory } from '@drover/init';
import type { CreateRequest, Limits } from '../runtime.ts';
import { MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID } from './mounts.ts';

/** What a standby's root has, and how it becomes a sandbox's: see binding.ts. */

/** It has no limits before it is somebody's. */
export const noLimits: Limits = { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, pids: 0 };
export const runMount = '/.drover/run';
/** What the runtime program mounted, and stays. */
export const standbyKept = ['/proc', '/sys', '/dev', '/.drover'] as const;
/** Where the next root is put together. */
export const standbyPlace = '/next';
export const closedMount = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

/** The root of all standbys, which none of them can write to. */
export function standbyRoot(stateDirectory: string): string {
  return join(stateDirectory, 'standby-root');
}

export async function makeStandbyRoot(stateDirectory: string): Promise<void> {
  const root = standbyRoot(stateDirectory);
  for (const path of ['/', standbyPlace, ...standbyKept]) await mkdir(join(root, path), { recursive: true, mode: 0o755 });
}

/** The directories that a root needs for that; each after the one that it is in. */
export function standbyMounts({ secretsBytes }: CreateRequest): readonly string[] {
  return [...standbyKept, ...(secretsBytes === undefined ? [] : ['/run', secretsDirectory])];
}
