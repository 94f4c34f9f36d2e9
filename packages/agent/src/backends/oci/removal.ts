import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, isSandboxId, removeTree, type SandboxId } from '@drover/foundation';
import { mountPoints, processesWithArgument, signalProcess } from '@drover/linux';
import { runtimeProgramMs } from '../../limits.ts';
import { isUnderWay } from './container-record.ts';
import { livePid } from './container-state.ts';
import { hasEntry, idInPath, programDirectory, sandboxesDirectory, type Layout } from './layout.ts';
import { removeProbes } from './mapping-probe.ts';
import type { OciHost } from './oci-host.ts';
import { unmountAll } from './rootfs.ts';

/** Kills what runs in a container, or in a standby, and removes all of it. @throws {DroverError} runtime-failed */
export async function destroyContainer(host: OciHost, id: SandboxId): Promise<void> {
  const { cgroups, program, stateDirectory } = host;
  const layout = host.layoutOf(id);
  const record = await host.recordOf(id);
  const pid = record === undefined ? undefined : livePid(host, id, record);
  const container = record?.container ?? id;
  // A standby with a pid: the program has finished.
  const isStarted = record?.container !== undefined && record.pid !== undefined;
  if (record === undefined || (isUnderWay(record) && !isStarted)) await endProgram(host, layout);
  if (pid !== undefined) signalProcess(pid, 'SIGKILL');
  await cgroups.thaw(container);
  host.exits.hurry(id);
  await endCgroups(host, container);
  if (await hasEntry(join(programDirectory(stateDirectory), container))) await program.forget(container);
  await unmountAll(host.mounts, layout);
  // The record is removed last, with its directory: until then another destroy finds the remains.
  for (const name of await readdir(layout.directory).catch(() => [])) {
    if (join(layout.directory, name) !== layout.record) await removeTree(join(layout.directory, name));
  }
  await removeTree(layout.directory);
  if (record?.slot !== undefined) (await host.prepare())?.release(record.slot);
}

/** Containers, standbys and remains that belong to none of `known`. */
export async function unknownContainers(host: OciHost, known: ReadonlySet<SandboxId>): Promise<readonly SandboxId[]> {
  const { stateDirectory } = host;
  const mounted = mountPoints().flatMap((path) => idInPath(path, sandboxesDirectory(stateDirectory)) ?? []);
  const started = (await readdir(programDirectory(stateDirectory)).catch((): string[] => [])).filter(isSandboxId);
  const records = await Promise.all([...known].map(async (id) => await host.recordOf(id)));
  const kept = new Set([...known, ...records.map((record) => record?.container)]);
  const cgroups = [...(await host.cgroups.list())].filter(isSandboxId);
  await removeProbes(host.mounts, stateDirectory);
  const found = new Set([...(await host.list()), ...cgroups, ...mounted, ...started]);
  return [...found].filter((id) => !kept.has(id));
}

export async function hasRemains(host: OciHost, id: SandboxId): Promise<boolean> {
  return (await hasEntry(host.layoutOf(id).directory)) || (await hasEntry(join(programDirectory(host.stateDirectory), id)));
}

/** @throws {DroverError} runtime-failed */
export async function endCgroups({ cgroups, clock }: OciHost, id: SandboxId): Promise<void> {
  const left = await cgroups.remove(id, clock);
  if (left.length === 0) return;
  throw new DroverError('runtime-failed', `processes of ${id} do not end: ${left.join(', ')}`, {
    hint: 'they hang in the kernel; try again later',
  });
}

/** Ends the program of an agent that was killed during a create: it would make the container after its removal. */
export async function endProgram({ clock }: OciHost, layout: Layout): Promise<void> {
  const deadline = clock.now() + runtimeProgramMs;
  for (;;) {
    // The --pid-file belongs to this container alone.
    const pids = processesWithArgument(layout.pidFile);
    if (pids.length === 0) return;
    for (const pid of pids) signalProcess(pid, 'SIGKILL');
    if (clock.now() >= deadline) throw new DroverError('runtime-failed', `the runtime program does not end (pid ${pids.join(', ')})`);
    await clock.sleep(5);
  }
}
