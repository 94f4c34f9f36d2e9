import { lstat } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf, isSandboxId, type SandboxId } from '@drover/foundation';

/** The paths of one sandbox. All are under one directory, so that destroy finds everything. */
export interface Layout {
  readonly directory: string;
  readonly record: string;
  /** OCI bundle: config.json. */
  readonly bundle: string;
  readonly pidFile: string;
  readonly log: string;
  /** The overlay: the root for the runtime program. */
  readonly root: string;
  /** Upper and work directories, or the mounted disk that holds them. Only root can enter it. */
  readonly writable: string;
  readonly diskImage: string;
  /** Mount points of layers and volumes with mapped owners. */
  readonly mapped: string;
}

export function layoutOf(stateDirectory: string, id: SandboxId): Layout {
  const directory = join(sandboxesDirectory(stateDirectory), id);
  return {
    directory,
    record: join(directory, 'record.json'),
    bundle: join(directory, 'bundle'),
    pidFile: join(directory, 'init.pid'),
    log: join(directory, 'runtime.log'),
    root: join(directory, 'root'),
    writable: join(directory, 'writable'),
    diskImage: join(directory, 'disk.img'),
    mapped: join(directory, 'mapped'),
  };
}

export const sandboxesDirectory = (stateDirectory: string): string => join(stateDirectory, 'sandboxes');
/** The state of the runtime program. */
export const programDirectory = (stateDirectory: string): string => join(stateDirectory, 'program');

export async function hasEntry(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
}

/** The sandbox whose directory `path` lies in. */
export function idInPath(path: string, sandboxes: string): SandboxId | undefined {
  if (!path.startsWith(`${sandboxes}/`)) return undefined;
  const name = path.slice(sandboxes.length + 1).split('/')[0] ?? '';
  return isSandboxId(name) ? name : undefined;
}
