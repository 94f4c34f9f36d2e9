import { formatBytes } from '@drover/foundation';
import type { Exhausted } from '../backends/index.ts';
import type { SandboxRecord } from './record.ts';

export interface LimitReached {
  readonly resource: string;
  /** What is used up, and what to do about it. */
  readonly message: string;
}

/** @param volumes the names of its volumes that are full */
export function limitsReached(exhausted: readonly Exhausted[], volumes: readonly string[]): readonly LimitReached[] {
  return [
    ...exhausted.map(({ resource, limit }) => ({ resource, message: sentences[resource](limit) })),
    ...volumes.map((name) => ({
      resource: `volume ${name}`,
      message: `its volume ${name} is full: remove files from it, or create a larger volume`,
    })),
  ];
}

const sentences: Readonly<Record<Exhausted['resource'], (limit: number) => string>> = {
  disk: (limit) => `its own disk of ${formatBytes(limit)} is full: remove files in it, or create it with a larger --disk`,
  inodes: (limit) => `its own disk has no inode left for another file (${limit}): remove files in it, or create it with a larger --disk`,
  pids: (limit) => `it has reached its limit of ${limit} processes and threads: end some, or create it with a larger --pids`,
  'host-disk': () => "its host's disk is full: remove images (drover image prune), sandboxes or volumes on that host",
};

export function volumesOf({ spec }: Pick<SandboxRecord, 'spec'>): readonly string[] {
  return spec.mounts.flatMap(({ volume }) => (volume === '' ? [] : [volume]));
}
