import { closeSync } from 'node:fs';
import { chmod, mkdir, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { secretsDirectory } from '@drover/init';
import { isSameProcess, type Cgroups, type MountOption, type Mounts } from '@drover/linux';
import type { AttachedMount, RootReplacer } from '@drover/linux/root-replacement';
import type { ForeignPaths } from '../../foreign/index.ts';
import { secretsInodes, tmpfsInodes } from '../../limits.ts';
import type { CreateRequest, Limits } from '../runtime.ts';
import type { Layout } from './layout.ts';
import { readRecord, writeRecord, type SandboxRecord } from './record.ts';
import { emptyRunDirectory, makeMountPoints, mapVolumes, mountRoot, type MappedVolume, type Owners } from './rootfs.ts';
import { resourcesOf, sharedMemoryOf, sharedMemoryPath } from './spec.ts';
import { together } from './together.ts';

/** It has no limits before it is somebody's. */
export const noLimits: Limits = { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, pids: 0, shmBytes: 0 };
const runMount = '/.drover/run';
/** What the runtime program mounted, and stays. */
const standbyKept = ['/proc', '/sys', '/dev', '/.drover'] as const;
/** Where the next root is put together. */
const standbyPlace = '/next';

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

const apart: readonly MountOption[] = ['nosuid', 'nodev'];

/** What of the host it takes to make a sandbox of a standby. */
export interface StandbyHost {
  readonly mounts: Mounts;
  readonly cgroups: Cgroups;
  readonly roots: RootReplacer;
  readonly foreign: ForeignPaths;
  readonly owners: (slot: number | undefined) => Promise<Owners | undefined>;
}

/**
 * Gives a standby the sandbox's directory, root, limits and name. Until its gate opens, no process but its init runs in it.
 * @param from the standby's layout, which becomes `layout`
 * @returns its record and the sandbox's root's uid on the host; undefined when it has ended, or cannot be this sandbox
 * @throws {DroverError} runtime-failed, timed-out: then it is of no more use, and may have a part of it
 */
export async function moveIn(
  host: StandbyHost,
  from: Layout,
  layout: Layout,
  request: CreateRequest,
): Promise<{ readonly record: SandboxRecord; readonly uid: number } | undefined> {
  const { mounts, cgroups, roots, foreign } = host;
  const waiting = await readRecord(from.record);
  if (waiting?.container === undefined || !isSameProcess(waiting.pid, waiting.pidStart)) return undefined;
  await rename(from.directory, layout.directory);
  const { slot, pid, container } = waiting;
  const record = { ...waiting, address: request.network.address, runDirectory: request.runDirectory };
  await writeRecord(layout.record, record);
  const owners = await host.owners(slot);
  const uid = owners?.start ?? 0;
  await together(
    mountRoot({ mounts, foreign, owners }, layout, request),
    emptyRunDirectory(request.runDirectory, uid),
    cgroups.limit(container, resourcesOf(request.limits, cgroups.limitsSwap)),
  );
  if (!(await makeMountPoints(layout.root, standbyKept, uid))) return undefined;
  const volumes = await mapVolumes({ mounts, foreign, owners }, layout, request);
  const root = mounts.clone(layout.root, []);
  const attached: AttachedMount[] = [];
  try {
    for (const make of sandboxMounts(request, volumes, mounts, uid)) attached.push(make());
    const { hostname } = request;
    const dropped = hasOwnSharedMemory(request) ? [runMount, sharedMemoryPath] : [runMount];
    await roots.replace({ pid, hostname, root, place: standbyPlace, kept: standbyKept, dropped, attached, owner: uid });
  } finally {
    for (const mount of [root, ...attached.map((each) => each.mount)]) closeSync(mount);
  }
  return { record, uid };
}

/**
 * Makes, one after another, the mounts of a sandbox that the runtime program would have made beside those that every one has, with the same
 * options (spec.ts). The descriptors are the caller's.
 * @param volumes where each of `request.mounts` is to be cloned from
 */
function sandboxMounts(
  request: CreateRequest,
  volumes: readonly MappedVolume[],
  mounts: Mounts,
  uid: number,
): readonly (() => AttachedMount)[] {
  const { runDirectory, secretsBytes: bytes } = request;
  const run = (): AttachedMount => ({ path: runMount, mount: mounts.clone(runDirectory, [...apart, 'noexec']), kind: 'directory' });
  const secrets = (): AttachedMount => {
    const mount = mounts.tmpfs({ bytes: bytes ?? 0, inodes: secretsInodes, mode: '755', uid }, [...apart, 'noexec']);
    return { path: secretsDirectory, mount, kind: 'directory' };
  };
  const bound = request.mounts.map(({ target: path, readOnly }, index) => (): AttachedMount => {
    const { source, kind } = volumes[index] as MappedVolume;
    return { path, mount: mounts.clone(source, readOnly ? [...apart, 'ro'] : apart), kind };
  });
  const sharedMemory = (): AttachedMount => {
    const settings = { bytes: sharedMemoryOf(request.limits), inodes: tmpfsInodes, mode: '1777', uid };
    return { path: sharedMemoryPath, mount: mounts.tmpfs(settings, apart), kind: 'directory' };
  };
  return [run, ...(hasOwnSharedMemory(request) ? [sharedMemory] : []), ...bound, ...(bytes === undefined ? [] : [secrets])];
}

/** Whether its /dev/shm has another size than the one that its standby has. */
function hasOwnSharedMemory({ limits }: CreateRequest): boolean {
  return sharedMemoryOf(limits) !== sharedMemoryOf(noLimits);
}
