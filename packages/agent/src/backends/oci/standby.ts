import { closeSync } from 'node:fs';
import { rename } from 'node:fs/promises';
import type { SandboxId } from '@drover/foundation';
import { secretsDirectory } from '@drover/init';
import { isSameProcess, processStart, type MountOption, type Mounts } from '@drover/linux';
import type { AttachedMount } from '@drover/linux/root-replacement';
import { settled } from '../../concurrency.ts';
import { secretsInodes, tmpfsInodes } from '../../limits.ts';
import { noLimits } from '../backend.ts';
import type { ContainerRequest } from './container.ts';
import { emptyRecord, readRecord, writeRecord, type ContainerRecord } from './container-record.ts';
import type { Launcher, WaitingInit } from './launch.ts';
import type { OciHost } from './oci-host.ts';
import { destroyContainer } from './removal.ts';
import { emptyRunDirectory, giveAway, makeMountPoints, mapVolumes, mountRoot, type MappedVolume } from './rootfs.ts';
import { resourcesOf, sharedMemoryOf, sharedMemoryPath } from './spec.ts';
import { keptMounts, nextRoot, standbyRoot } from './standby-root.ts';

const runMount = '/.drover/run';

/** Containers whose init has started in an empty root, and waits at its gate for a sandbox (docs/decisions/0007-standbys.md). */
export class StandbyContainers {
  readonly #host: OciHost;
  readonly #launcher: Launcher;
  readonly #gates = new Map<SandboxId, Disposable>();

  constructor(host: OciHost, launcher: Launcher) {
    this.#host = host;
    this.#launcher = launcher;
  }

  async make(given: Pick<ContainerRequest, 'id' | 'network' | 'initDirectory' | 'runDirectory'>, signal: AbortSignal): Promise<void> {
    const { id, runDirectory } = given;
    const { stateDirectory } = this.#host;
    const layout = this.#host.layoutOf(id);
    const request: ContainerRequest = { ...given, hostname: 'standby', layers: [], submounts: [], mounts: [], limits: noLimits };
    const record: ContainerRecord = { ...emptyRecord(request, undefined), container: id };
    const { slot, owners } = await this.#host.allocate(layout, record);
    signal.throwIfAborted();
    await giveAway(runDirectory, owners?.start ?? 0);
    const spec = { request, root: standbyRoot(stateDirectory), rangeStart: owners?.start, mountSources: [], standby: true };
    const { pid, gate } = await this.#launcher.startInit(layout, spec);
    this.#gates.set(id, gate);
    await writeRecord(layout.record, { ...record, slot, pid, pidStart: processStart(pid) });
  }

  /** Makes a sandbox from a standby. Undefined: that is not possible, and nothing of either is left. */
  async become(standby: SandboxId, request: ContainerRequest): Promise<WaitingInit | undefined> {
    const gate = this.#gates.get(standby);
    if (gate === undefined) return undefined;
    try {
      const moved = await moveIn(this.#host, standby, request);
      if (moved !== undefined) {
        this.#gates.delete(standby);
        return { ...moved, gate };
      }
    } catch (error) {
      this.#host.logger.warn({ err: error, sandbox: request.id }, 'a standby could not become a sandbox, which is made without it');
    }
    await this.destroy(standby);
    await destroyContainer(this.#host, request.id);
    return undefined;
  }

  /** Init ends before its gate opens: it may have its config already, and only a part of its mounts. */
  async destroy(standby: SandboxId): Promise<void> {
    try {
      await destroyContainer(this.#host, standby);
    } finally {
      this.#gates.get(standby)?.[Symbol.dispose]();
      this.#gates.delete(standby);
    }
  }
}

/**
 * Gives a standby the sandbox's directory, root, limits and name. Until its gate opens, no process but its init runs in it.
 * @returns undefined when it has ended, or cannot be this sandbox
 * @throws {DroverError} runtime-failed, timed-out; the standby is unusable then
 */
async function moveIn(host: OciHost, standby: SandboxId, request: ContainerRequest): Promise<Omit<WaitingInit, 'gate'> | undefined> {
  const { mounts, cgroups, roots, foreign, clock } = host;
  const from = host.layoutOf(standby);
  const layout = host.layoutOf(request.id);
  const waiting = await readRecord(from.record);
  if (waiting?.container === undefined || !isSameProcess(waiting.pid, waiting.pidStart)) return undefined;
  await rename(from.directory, layout.directory);
  const { slot, pid, container } = waiting;
  const record = { ...waiting, address: request.network.address, runDirectory: request.runDirectory };
  await writeRecord(layout.record, record);
  const owners = await host.ownersOf(slot);
  const uid = owners?.start ?? 0;
  await settled(
    mountRoot({ mounts, foreign, owners }, layout, request),
    emptyRunDirectory(request.runDirectory, uid),
    cgroups.limit(container, resourcesOf(request.limits, cgroups.limitsSwap)),
  );
  if (!(await makeMountPoints(layout.root, keptMounts, uid))) return undefined;
  const volumes = await mapVolumes({ mounts, foreign, owners }, layout, request);
  const root = mounts.clone(layout.root, []);
  const attached: AttachedMount[] = [];
  try {
    for (const make of sandboxMounts(request, volumes, mounts, uid)) attached.push(make());
    const { hostname } = request;
    const dropped = hasOwnSharedMemory(request) ? [runMount, sharedMemoryPath] : [runMount];
    await roots.replace({ pid, hostname, root, place: nextRoot, kept: keptMounts, dropped, attached, owner: uid });
  } finally {
    for (const mount of [root, ...attached.map((each) => each.mount)]) closeSync(mount);
  }
  return { record: { ...record, phase: 'started', startedAt: clock.now() }, uid };
}

const apart: readonly MountOption[] = ['nosuid', 'nodev'];

/**
 * The mounts that a sandbox has beside those of a standby, with the same options as in spec.ts. They are made one after another; the caller
 * closes the descriptors.
 * @param volumes sources of `request.mounts`
 */
function sandboxMounts(
  request: ContainerRequest,
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

/** Whether its /dev/shm has another size than that of a standby. */
function hasOwnSharedMemory({ limits }: ContainerRequest): boolean {
  return sharedMemoryOf(limits) !== sharedMemoryOf(noLimits);
}
