import { stat } from 'node:fs/promises';
import { DroverError, type SandboxId } from '@drover/foundation';
import { isInCgroup, isSameProcess, processStart, readPidFile } from '@drover/linux';
import { killedExitCode, type SandboxState } from '../backend.ts';
import { isUnderWay, stateOf, writeRecord, type ContainerRecord } from './container-record.ts';
import { readExitRecord } from './exit-record.ts';
import type { OciHost } from './oci-host.ts';

/** Init's pid while it lives. Synchronous, so that decisions on it still hold. */
export function livePid(host: OciHost, id: SandboxId, record: ContainerRecord): number | undefined {
  if (record.phase === 'ended') return undefined;
  // A standby becomes a sandbox when its record has the phase `started`; its gate opens after that.
  if (record.phase === 'creating' && record.container !== undefined) return undefined;
  if (isSameProcess(record.pid, record.pidStart)) return record.pid;
  if (!isUnderWay(record)) return undefined;
  // The agent died while the program made the container: the program may have finished.
  const pid = readPidFile(host.layoutOf(id).pidFile);
  return pid !== undefined && processStart(pid) !== undefined && isInCgroup(pid, record.container ?? id) ? pid : undefined;
}

/** The state where it can be read without waiting. `unsettled`: only `settle` can decide it. */
export async function peek(host: OciHost, id: SandboxId): Promise<SandboxState | 'unsettled' | undefined> {
  const record = await host.recordOf(id);
  if (record === undefined) return undefined;
  if (record.phase === 'ended') return stateOf(record);
  const pid = livePid(host, id, record);
  return pid !== undefined && !isUnderWay(record) ? running(host, id, record, pid) : 'unsettled';
}

/**
 * The state, and the record brought in line with it. In the executor of the container: an end that is recorded now must not overwrite a start that
 * is just being recorded.
 */
export async function settle(host: OciHost, id: SandboxId): Promise<SandboxState | undefined> {
  const layout = host.layoutOf(id);
  let record = await host.recordOf(id);
  if (record === undefined) return undefined;
  const live = livePid(host, id, record);
  if (live !== undefined && isUnderWay(record)) {
    // The agent that started it died before it could record that. Recorded now, since nothing would show it once the process has ended.
    const { mtimeMs } = await stat(layout.pidFile);
    record = { ...record, phase: 'started', pid: live, pidStart: processStart(live), startedAt: Math.round(mtimeMs) };
    await writeRecord(layout.record, record);
  }
  if (record.phase === 'creating') return undefined;
  return live === undefined ? stateOf(await recordEnd(host, id, record)) : running(host, id, record, live);
}

/** @throws {DroverError} sandbox-not-found, sandbox-not-running */
export async function mustRun(host: OciHost, id: SandboxId): Promise<ContainerRecord> {
  const record = await host.recordOf(id);
  if (record === undefined) throw notFound(id);
  if (livePid(host, id, record) !== undefined) return record;
  throw new DroverError('sandbox-not-running', `the sandbox ${id} is not running`, {
    hint: `\`drover sandbox start ${id}\` starts it again`,
  });
}

export function notFound(id: SandboxId): DroverError {
  return new DroverError('sandbox-not-found', `there is no sandbox ${id} on this host`, { hint: '`drover sandbox ls` lists them' });
}

function running({ cgroups }: OciHost, id: SandboxId, { container = id, startedAt }: ContainerRecord, pid: number): SandboxState {
  const phase = cgroups.isFrozen(container) ? 'paused' : 'running';
  return { phase, pid, exitCode: undefined, exitSignal: '', outOfMemory: false, startedAt, finishedAt: undefined };
}

/** Records how the container ended, once: the cgroup that knows of a kill may be removed later. */
async function recordEnd(host: OciHost, id: SandboxId, record: ContainerRecord): Promise<ContainerRecord> {
  if (record.phase === 'ended') return record;
  const exit = await readExitRecord(record.runDirectory);
  const now = host.clock.now();
  const ended: ContainerRecord = {
    ...record,
    phase: 'ended',
    exitCode: exit?.code ?? killedExitCode,
    exitSignal: exit?.signal ?? '',
    // An init that was killed left no record.
    outOfMemory: exit?.outOfMemory ?? host.cgroups.oomKills(record.container ?? id) > 0,
    startFailure: exit?.reason === 'start-failed' ? exit.message : undefined,
    idle: exit?.reason === 'idle',
    unrecorded: exit === undefined,
    // The sandbox's own clock reading counts only where it is possible.
    finishedAt: exit !== undefined && exit.at >= (record.startedAt ?? 0) && exit.at <= now ? exit.at : now,
  };
  await writeRecord(host.layoutOf(id).record, ended);
  return ended;
}
