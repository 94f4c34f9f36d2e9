import { availableParallelism } from 'node:os';
import { chmod, chown, mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import {
  DroverError,
  errnoOf,
  isSandboxId,
  SerialExecutor,
  systemClock,
  type Clock,
  type Logger,
  type SandboxId,
} from '@drover/foundation';
import { initPort } from '@drover/init';
import { maxOpenFiles, runtimeProgramMs, startLookMs, startsPerCpu, startTurnMs } from '../../limits.ts';
import { dialSandbox } from '../dial.ts';
import { killedExitCode, type CreateRequest, type Runtime, type RuntimeFinding, type RuntimeState, type RuntimeStats } from '../runtime.ts';
import { Cgroups } from './cgroup.ts';
import { checkHost, probeIdmap, removeProbes } from './check.ts';
import { readExitRecord } from './exit-record.ts';
import { ExitWatch } from './exit-watch.ts';
import { hasEntry, idInPath, layoutOf, programDirectory, sandboxesDirectory, type Layout } from './layout.ts';
import { mountPoints, openMounts, type Mounts } from './mounts.ts';
import { isInCgroup, isSameProcess, ownOpenFiles, processesWithArgument, processStart, readPid, signalProcess } from './process.ts';
import { Program } from './program.ts';
import { emptyRecord, isUnderWay, readRecord, stateOf, writeRecord, type SandboxRecord } from './record.ts';
import { giveAway, mapVolumes, mountRoot, unmountAll, type Owners } from './rootfs.ts';
import { buildSpec } from './spec.ts';
import { together } from './together.ts';
import { Turns } from './turns.ts';
import { rangeStart, UidRanges } from './uid-ranges.ts';

export interface OciRuntimeOptions {
  /** Everything that must outlive this process is in here; made when it is not there, passable (not readable) for others. */
  readonly stateDirectory: string;
  /** The cgroup of all sandboxes, in each hierarchy: `/drover`. */
  readonly cgroupParent: string;
  /** `runc` (default), `crun` or the path of another OCI runtime program. */
  readonly program?: string;
  readonly logger: Logger;
  readonly clock?: Clock;
  /** Default: the best that this process has. */
  readonly mounts?: Mounts;
}

/**
 * Containers through an OCI runtime program, without a daemon in between. The record on disk says what a sandbox is;
 * the kernel says whether it lives.
 */
export class OciRuntime implements Runtime {
  readonly name = 'oci';
  readonly #stateDirectory: string;
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #program: Program;
  readonly #cgroups: Cgroups;
  readonly #mounts: Mounts;
  readonly #exits: ExitWatch;
  readonly #starts = new Turns(Math.ceil(availableParallelism() * startsPerCpu));
  /** One operation at a time on one sandbox. */
  readonly #serial = new Map<SandboxId, SerialExecutor>();
  readonly #life = new AbortController();
  #prepared: Promise<UidRanges | undefined> | undefined;

  constructor(options: OciRuntimeOptions) {
    this.#stateDirectory = options.stateDirectory;
    this.#logger = options.logger;
    this.#mounts = options.mounts ?? openMounts();
    this.#clock = options.clock ?? systemClock;
    this.#program = new Program(options.program ?? 'runc', programDirectory(options.stateDirectory));
    this.#cgroups = new Cgroups(options.cgroupParent);
    this.#exits = new ExitWatch(this.#clock);
  }

  async check(): Promise<readonly RuntimeFinding[]> {
    await this.#prepare();
    return await checkHost(this.#program, this.#cgroups, this.#mounts, this.#stateDirectory);
  }

  async create(request: CreateRequest, signal: AbortSignal): Promise<void> {
    await this.#alone(request.id, async () => {
      const layout = layoutOf(this.#stateDirectory, request.id);
      const record = await readRecord(layout.record);
      if (record !== undefined && this.#livePid(request.id, layout, record) !== undefined) return;
      if (record !== undefined && record.phase !== 'creating') return;
      // What a crash in the middle of a create left.
      if (await this.#exists(request.id)) await this.#destroy(request.id);
      signal.throwIfAborted();
      try {
        await this.#make(layout, request, signal);
      } catch (error) {
        await this.#destroy(request.id).catch((failure: unknown) => {
          this.#logger.warn(
            { sandbox: request.id, error: String(failure) },
            'removing a sandbox that could not be made failed; the next sweep tries again',
          );
        });
        throw error;
      }
    });
  }

  async start(request: CreateRequest, signal: AbortSignal): Promise<void> {
    await this.#alone(request.id, async () => {
      const layout = layoutOf(this.#stateDirectory, request.id);
      const record = await readRecord(layout.record);
      if (record === undefined || record.phase === 'creating') throw notFound(request.id);
      if (this.#livePid(request.id, layout, record) !== undefined) return;
      if (record.phase === 'starting') await this.#endProgram(layout);
      // Of the run before: its processes have ended.
      await this.#endCgroups(request.id);
      await this.#program.forget(request.id);
      signal.throwIfAborted();
      await writeRecord(layout.record, { ...record, phase: 'starting' });
      await this.#launch(layout, request, record.slot, await this.#owners(record.slot), signal);
    });
  }

  async kill(id: SandboxId, signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await readRecord(layout.record);
    const pid = record === undefined ? undefined : this.#livePid(id, layout, record);
    if (pid === undefined) return;
    signalProcess(pid, signal);
    if (signal === 'SIGKILL') {
      await this.#cgroups.thaw(id);
      this.#exits.hurry(id);
    }
  }

  async pause(id: SandboxId): Promise<void> {
    await this.#alone(id, async () => {
      await this.#mustRun(id);
      if (!this.#cgroups.isFrozen(id)) await this.#program.pause(id);
    });
  }

  async resume(id: SandboxId): Promise<void> {
    await this.#alone(id, async () => {
      await this.#mustRun(id);
      if (this.#cgroups.isFrozen(id)) await this.#program.resume(id);
    });
  }

  async inspect(id: SandboxId): Promise<RuntimeState | undefined> {
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await readRecord(layout.record);
    if (record === undefined) return undefined;
    if (record.phase === 'ended') return stateOf(record);
    const pid = this.#livePid(id, layout, record);
    if (pid !== undefined && !isUnderWay(record)) return this.#running(id, record, pid);
    // What is under way is waited for: an end recorded now must not overwrite the start that is just being recorded.
    return await this.#alone(id, async () => {
      let settled = await readRecord(layout.record);
      if (settled === undefined) return undefined;
      const live = this.#livePid(id, layout, settled);
      if (live !== undefined && isUnderWay(settled)) {
        // The agent that started it died before it could say so. Once it has ended, nothing would tell it from one that never ran.
        const { mtimeMs } = await stat(layout.pidFile);
        settled = { ...settled, phase: 'started', pid: live, pidStart: processStart(live), startedAt: Math.round(mtimeMs) };
        await writeRecord(layout.record, settled);
      }
      if (settled.phase === 'creating') return undefined;
      return live === undefined ? stateOf(await this.#recordEnd(id, layout, settled)) : this.#running(id, settled, live);
    });
  }

  async list(): Promise<readonly SandboxId[]> {
    const names = await readdir(sandboxesDirectory(this.#stateDirectory)).catch((error: unknown): string[] => {
      if (errnoOf(error) === 'ENOENT') return [];
      throw error;
    });
    return names.filter(isSandboxId);
  }

  async destroy(id: SandboxId): Promise<void> {
    await this.#alone(id, async () => await this.#destroy(id));
  }

  async sweep(known: ReadonlySet<SandboxId>): Promise<readonly string[]> {
    const mounted = mountPoints().flatMap((path) => idInPath(path, sandboxesDirectory(this.#stateDirectory)) ?? []);
    const started = (await readdir(programDirectory(this.#stateDirectory)).catch((): string[] => [])).filter(isSandboxId);
    const found = new Set([...(await this.list()), ...(await this.#cgroups.list()), ...mounted, ...started]);
    const swept: string[] = [];
    await removeProbes(this.#mounts, this.#stateDirectory);
    for (const id of found) {
      if (known.has(id)) continue;
      await this.destroy(id);
      swept.push(id);
    }
    return swept;
  }

  async waitExit(id: SandboxId, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await readRecord(layout.record);
    if (record === undefined) return;
    await this.#exits.wait(id, record.runDirectory, () => this.#livePid(id, layout, record) === undefined, signal);
  }

  async dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex> {
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await this.#mustRun(id);
    return await dialSandbox({
      address: record.address,
      port: port === 'init' ? initPort : port,
      runDirectory: port === 'init' ? record.runDirectory : undefined,
      hasEnded: () => Promise.resolve(this.#livePid(id, layout, record) === undefined),
      clock: this.#clock,
      signal,
    });
  }

  async stats(id: SandboxId): Promise<RuntimeStats | undefined> {
    return await Promise.resolve(this.#cgroups.stats(id));
  }

  /** Ends what this object holds; sandboxes run on. */
  async close(): Promise<void> {
    this.#life.abort();
    await (await this.#prepared)?.close();
    await this.#cgroups.removeParent();
  }

  /** Directories, and the uid ranges when this host can map owners; once. */
  #prepare(): Promise<UidRanges | undefined> {
    this.#prepared ??= this.#prepareOnce();
    this.#prepared.catch(() => (this.#prepared = undefined));
    return this.#prepared;
  }

  async #prepareOnce(): Promise<UidRanges | undefined> {
    const sandboxes = sandboxesDirectory(this.#stateDirectory);
    await mkdir(sandboxes, { recursive: true });
    await mkdir(programDirectory(this.#stateDirectory), { recursive: true, mode: 0o700 });
    // The program looks at the root as the sandbox's own root does, so it must be able to pass, and no more.
    for (const path of [this.#stateDirectory, sandboxes]) await chmod(path, 0o711);
    const slots = await Promise.all(
      (await this.list()).map(async (id) => (await readRecord(layoutOf(this.#stateDirectory, id).record))?.slot),
    );
    const ranges = new UidRanges(slots.filter((slot) => slot !== undefined));
    const refusal = await probeIdmap(this.#mounts, ranges, this.#stateDirectory);
    if (refusal === undefined) {
      ranges.warm();
      return ranges;
    }
    this.#logger.warn({ reason: refusal }, 'sandboxes get no user namespace on this host');
    await ranges.close();
    return undefined;
  }

  async #owners(slot: number | undefined): Promise<Owners | undefined> {
    if (slot === undefined) return undefined;
    const ranges = await this.#prepare();
    if (ranges === undefined)
      throw new DroverError('runtime-failed', 'the sandbox was made with a user namespace, and this host has none any more');
    return { start: rangeStart(slot), namespaceFd: await ranges.namespace(slot) };
  }

  async #make(layout: Layout, request: CreateRequest, signal: AbortSignal): Promise<void> {
    const ranges = await this.#prepare();
    const slot = ranges?.take();
    await mkdir(layout.directory, { mode: 0o710 });
    // The slot is on disk before anything has its owner.
    await writeRecord(layout.record, emptyRecord(request, slot));
    const owners = await this.#owners(slot);
    ranges?.warm();
    if (owners !== undefined) await chown(layout.directory, 0, owners.start);
    signal.throwIfAborted();
    await this.#launch(layout, request, slot, owners, signal);
  }

  async #launch(
    layout: Layout,
    request: CreateRequest,
    slot: number | undefined,
    owners: Owners | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const endTurn = await this.#starts.take(signal);
    const late = setTimeout(endTurn, startTurnMs);
    try {
      await this.#begin(layout, request, slot, owners);
    } catch (error) {
      endTurn();
      throw error;
    } finally {
      clearTimeout(late);
    }
    // Most of the work of a start is init's own.
    void this.#commandBegun(request.id).then(endTurn);
  }

  /** Resolves when init has started something, or has ended, or takes long about it. */
  async #commandBegun(id: SandboxId): Promise<void> {
    const deadline = this.#clock.now() + startTurnMs;
    while (this.#cgroups.processes(id) === 1 && this.#clock.now() < deadline) {
      // Closed: nobody waits for a turn any more.
      await this.#clock.sleep(startLookMs, this.#life.signal).catch(() => undefined);
      if (this.#life.signal.aborted) return;
    }
  }

  async #begin(layout: Layout, request: CreateRequest, slot: number | undefined, owners: Owners | undefined): Promise<void> {
    const { id, runDirectory } = request;
    const emptyRunDirectory = async (): Promise<void> => {
      // Before the directory is given away with all that is in it.
      await rm(join(runDirectory, 'exit.json'), { force: true, recursive: true });
      await giveAway(runDirectory, owners?.start ?? 0);
    };
    await together(
      mountRoot(this.#mounts, layout, request, owners),
      mkdir(layout.bundle, { recursive: true, mode: 0o700 }),
      rm(layout.pidFile, { force: true }),
      emptyRunDirectory(),
    );
    const spec = buildSpec({
      request,
      root: layout.root,
      cgroupsPath: this.#cgroups.pathOf(id),
      rangeStart: owners?.start,
      limitsSwap: this.#cgroups.limitsSwap,
      architecture: process.arch,
      openFiles: Math.min(maxOpenFiles, ownOpenFiles()),
      mountSources: await mapVolumes(this.#mounts, layout, request, owners),
    });
    await writeFile(join(layout.bundle, 'config.json'), JSON.stringify(spec), { mode: 0o600 });
    const startedAt = this.#clock.now();
    // Opens at the end of this, however it ends: where the run directory was not completed, init finds no config and ends.
    using _gate = await this.#program.run(id, layout.bundle, layout.pidFile, layout.log);
    const pid = Number(await readFile(layout.pidFile, 'utf8'));
    // Ended already: then there is no start time, and the next look records the end.
    await writeRecord(layout.record, { ...emptyRecord(request, slot), phase: 'started', pid, pidStart: processStart(pid), startedAt });
    if (request.gate === undefined) return;
    await request.gate.completed;
    await giveAway(runDirectory, owners?.start ?? 0);
    await request.gate.opening();
  }

  async #destroy(id: SandboxId): Promise<void> {
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await readRecord(layout.record);
    const pid = record === undefined ? undefined : this.#livePid(id, layout, record);
    if (record === undefined || isUnderWay(record)) await this.#endProgram(layout);
    if (pid !== undefined) signalProcess(pid, 'SIGKILL');
    await this.#cgroups.thaw(id);
    this.#exits.hurry(id);
    await this.#endCgroups(id);
    if (await hasEntry(join(programDirectory(this.#stateDirectory), id))) await this.#program.forget(id);
    await unmountAll(this.#mounts, layout);
    // The record goes last with its directory: until then another destroy finds what is left.
    for (const name of await readdir(layout.directory).catch(() => [])) {
      if (join(layout.directory, name) !== layout.record) await rm(join(layout.directory, name), { recursive: true, force: true });
    }
    await rm(layout.directory, { recursive: true, force: true });
    if (record?.slot !== undefined) (await this.#prepare())?.give(record.slot);
  }

  /** @throws {DroverError} runtime-failed */
  async #endCgroups(id: SandboxId): Promise<void> {
    const left = await this.#cgroups.remove(id, this.#clock);
    if (left.length === 0) return;
    throw new DroverError('runtime-failed', `processes of ${id} do not end: ${left.join(', ')}`, {
      hint: 'they hang in the kernel; try again later',
    });
  }

  /** The program may still be at a create whose agent was killed; it would make the sandbox after it was destroyed. */
  async #endProgram(layout: Layout): Promise<void> {
    const deadline = this.#clock.now() + runtimeProgramMs;
    for (;;) {
      // Its --pid-file is of this sandbox alone.
      const pids = processesWithArgument(layout.pidFile).filter((pid) => processStart(pid) !== undefined);
      if (pids.length === 0) return;
      for (const pid of pids) signalProcess(pid, 'SIGKILL');
      if (this.#clock.now() >= deadline)
        throw new DroverError('runtime-failed', `the runtime program does not end (pid ${pids.join(', ')})`);
      await this.#clock.sleep(5);
    }
  }

  async #exists(id: SandboxId): Promise<boolean> {
    return (
      (await hasEntry(layoutOf(this.#stateDirectory, id).directory)) || (await hasEntry(join(programDirectory(this.#stateDirectory), id)))
    );
  }

  /** Init's pid while it lives. Synchronous, so that what is decided on it still holds. */
  #livePid(id: SandboxId, layout: Layout, record: SandboxRecord): number | undefined {
    if (record.phase === 'ended') return undefined;
    if (isSameProcess(record.pid, record.pidStart)) return record.pid;
    if (!isUnderWay(record)) return undefined;
    // The agent died while the program was at it: the program may have finished.
    const pid = readPid(layout.pidFile);
    return pid !== undefined && processStart(pid) !== undefined && isInCgroup(pid, id) ? pid : undefined;
  }

  #running(id: SandboxId, record: SandboxRecord, pid: number): RuntimeState {
    return {
      phase: this.#cgroups.isFrozen(id) ? 'paused' : 'running',
      pid,
      exitCode: undefined,
      outOfMemory: this.#cgroups.oomKills(id) > 0,
      startedAt: record.startedAt,
      finishedAt: undefined,
    };
  }

  /** Puts together how the sandbox ended, once, and keeps it: later the cgroup that knows of the kill may be gone. */
  async #recordEnd(id: SandboxId, layout: Layout, record: SandboxRecord): Promise<SandboxRecord> {
    if (record.phase === 'ended') return record;
    const exit = await readExitRecord(record.runDirectory);
    const now = this.#clock.now();
    const ended: SandboxRecord = {
      ...record,
      phase: 'ended',
      exitCode: exit?.code ?? killedExitCode,
      outOfMemory: this.#cgroups.oomKills(id) > 0,
      startFailure: exit?.reason === 'start-failed' ? exit.message : undefined,
      idle: exit?.reason === 'idle',
      // The sandbox's own clock readings are taken only where they are possible.
      finishedAt: exit !== undefined && exit.at >= (record.startedAt ?? 0) && exit.at <= now ? exit.at : now,
    };
    await writeRecord(layout.record, ended);
    return ended;
  }

  /** @throws {DroverError} sandbox-not-found, sandbox-not-running */
  async #mustRun(id: SandboxId): Promise<SandboxRecord> {
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await readRecord(layout.record);
    if (record === undefined) throw notFound(id);
    if (this.#livePid(id, layout, record) !== undefined) return record;
    throw new DroverError('sandbox-not-running', `the sandbox ${id} is not running`, {
      hint: `\`drover sandbox start ${id}\` starts it again`,
    });
  }

  async #alone<T>(id: SandboxId, task: () => Promise<T>): Promise<T> {
    let serial = this.#serial.get(id);
    if (serial === undefined) this.#serial.set(id, (serial = new SerialExecutor()));
    try {
      return await serial.run(task);
    } finally {
      if (serial.waiting === 0 && this.#serial.get(id) === serial) this.#serial.delete(id);
    }
  }
}

function notFound(id: SandboxId): DroverError {
  return new DroverError('sandbox-not-found', `there is no sandbox ${id} on this host`, { hint: '`drover sandbox ls` lists them' });
}
