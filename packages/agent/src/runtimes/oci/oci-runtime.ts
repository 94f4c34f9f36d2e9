import { availableParallelism } from 'node:os';
import { chmod, chown, mkdir, readdir, readFile, rm, stat, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import {
  DroverError,
  errnoOf,
  isSandboxId,
  removeTree,
  KeyedExecutor,
  systemClock,
  type Clock,
  type Logger,
  type SandboxId,
  makeDirectories,
} from '@drover/foundation';
import { initPort } from '@drover/init';
import {
  Cgroups,
  isInCgroup,
  isMounted,
  isSameProcess,
  mountPoints,
  Mounts,
  openFilesLimit,
  processesWithArgument,
  processStart,
  readPidFile,
  signalProcess,
} from '@drover/linux';
import { RootReplacer } from '@drover/linux/root-replacement';
import { fullnessOf, isDiskRoot } from '../../disks/index.ts';
import { ForeignPaths } from '../../foreign/index.ts';
import { initPidsAllowance, maxOpenFiles, runtimeProgramMs, startLookMs, startsPerCpu, startTurnMs } from '../../limits.ts';
import { dialSandbox } from '../dial.ts';
import {
  killedExitCode,
  type CreateRequest,
  type Exhausted,
  type Runtime,
  type RuntimeFinding,
  type RuntimeState,
  type RuntimeStats,
  type StandbyRequest,
  type StoppedRoot,
} from '../runtime.ts';
import { checkHost, probeIdmap, removeProbes } from './check.ts';
import { readExitRecord } from './exit-record.ts';
import { ExitWatch } from './exit-watch.ts';
import { KernelLog } from './kernel-log.ts';
import { hasEntry, idInPath, layoutOf, programDirectory, sandboxesDirectory, type Layout } from './layout.ts';
import { Program } from './program.ts';
import { emptyRecord, isUnderWay, readRecord, stateOf, writeRecord, type SandboxRecord } from './record.ts';
import { emptyRunDirectory, giveAway, mapVolumes, mountRoot, unmountAll, type Owners } from './rootfs.ts';
import { buildSpec, type SpecOptions } from './spec.ts';
import { makeStandbyRoot, moveIn, noLimits, standbyRoot, type StandbyHost } from './standby.ts';
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
  /** For tests of a host that cannot map owners. */
  readonly mounts?: Mounts;
  /** Shared with the images. Default: its own. */
  readonly foreign?: ForeignPaths;
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
  readonly #roots = new RootReplacer();
  readonly #kernelLog = new KernelLog();
  readonly #foreign: ForeignPaths;
  /** What standbys wait at. */
  readonly #gates = new Map<SandboxId, Disposable>();
  readonly standBy = async (request: StandbyRequest, signal: AbortSignal): Promise<void> => await this.#standBy(request, signal);
  readonly #exits: ExitWatch;
  readonly #starts = new Turns(Math.ceil(availableParallelism() * startsPerCpu));
  /** One operation at a time on one sandbox. */
  readonly #serial = new KeyedExecutor<SandboxId>();
  readonly #life = new AbortController();
  #prepared: Promise<UidRanges | undefined> | undefined;

  constructor(options: OciRuntimeOptions) {
    this.#stateDirectory = options.stateDirectory;
    this.#logger = options.logger;
    this.#mounts = options.mounts ?? new Mounts();
    this.#clock = options.clock ?? systemClock;
    this.#foreign = options.foreign ?? new ForeignPaths();
    this.#program = new Program(options.program ?? 'runc', programDirectory(options.stateDirectory));
    this.#cgroups = new Cgroups(options.cgroupParent);
    this.#exits = new ExitWatch(this.#clock);
  }

  async check(): Promise<readonly RuntimeFinding[]> {
    await this.#prepare();
    return await checkHost(this.#program, this.#cgroups, this.#mounts, this.#stateDirectory);
  }

  async create(request: CreateRequest, signal: AbortSignal): Promise<void> {
    const { id, standby } = request;
    try {
      await this.#alone(id, async () => await this.#create(request, signal));
    } finally {
      // Not needed after all.
      if (standby !== undefined && this.#gates.has(standby)) await this.destroy(standby);
    }
  }

  async #create(request: CreateRequest, signal: AbortSignal): Promise<void> {
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
  }

  async start(request: CreateRequest, signal: AbortSignal): Promise<void> {
    await this.#alone(request.id, async () => {
      const layout = layoutOf(this.#stateDirectory, request.id);
      const record = await readRecord(layout.record);
      if (record === undefined || record.phase === 'creating') throw notFound(request.id);
      if (this.#livePid(request.id, layout, record) !== undefined) return;
      if (record.phase === 'starting') await this.#endProgram(layout);
      // Of the run before: its processes have ended.
      const { container = request.id, ...rest } = record;
      await this.#endCgroups(container);
      await this.#program.forget(container);
      signal.throwIfAborted();
      await writeRecord(layout.record, { ...rest, phase: 'starting' });
      const { slot } = record;
      await this.#launch(layout, request, async () => await this.#run(layout, request, slot, await this.#owners(slot)), signal);
    });
  }

  async kill(id: SandboxId, signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await readRecord(layout.record);
    const pid = record === undefined ? undefined : this.#livePid(id, layout, record);
    if (pid === undefined) return;
    signalProcess(pid, signal);
    if (signal === 'SIGKILL') {
      await this.#cgroups.thaw(record?.container ?? id);
      this.#exits.hurry(id);
    }
  }

  async pause(id: SandboxId): Promise<void> {
    await this.#alone(id, async () => {
      const { container = id } = await this.#mustRun(id);
      if (!this.#cgroups.isFrozen(container)) await this.#program.pause(container);
    });
  }

  async resume(id: SandboxId): Promise<void> {
    await this.#alone(id, async () => {
      const { container = id } = await this.#mustRun(id);
      if (this.#cgroups.isFrozen(container)) await this.#program.resume(container);
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

  async sweep(known: ReadonlySet<SandboxId>): Promise<readonly SandboxId[]> {
    const mounted = mountPoints().flatMap((path) => idInPath(path, sandboxesDirectory(this.#stateDirectory)) ?? []);
    const started = (await readdir(programDirectory(this.#stateDirectory)).catch((): string[] => [])).filter(isSandboxId);
    const found = new Set([...(await this.list()), ...[...(await this.#cgroups.list())].filter(isSandboxId), ...mounted, ...started]);
    const records = await Promise.all([...known].map(async (id) => await readRecord(layoutOf(this.#stateDirectory, id).record)));
    const kept = new Set([...known, ...records.map((record) => record?.container)]);
    const swept: SandboxId[] = [];
    await removeProbes(this.#mounts, this.#stateDirectory);
    for (const id of found) {
      if (kept.has(id)) continue;
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

  async exhausted(id: SandboxId): Promise<readonly Exhausted[]> {
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await readRecord(layout.record);
    const found: Exhausted[] = [];
    const pids = this.#cgroups.pidsLimitReached(record?.container ?? id);
    if (pids !== undefined) found.push({ resource: 'pids', limit: Math.max(1, pids - initPidsAllowance) });
    const own = await isDiskRoot(layout.writable);
    const disk = await statfs(own ? layout.writable : this.#stateDirectory);
    const resource = fullnessOf(disk);
    if (resource !== undefined && own) found.push({ resource, limit: resource === 'disk' ? disk.blocks * disk.bsize : disk.files });
    else if (resource !== undefined) found.push({ resource: 'host-disk', limit: 0 });
    return found;
  }

  async oomKills(id: SandboxId): Promise<number> {
    const record = await readRecord(layoutOf(this.#stateDirectory, id).record);
    return this.#cgroups.oomKills(record?.container ?? id);
  }

  async oomVictims(id: SandboxId, count: number): Promise<readonly string[]> {
    const record = await readRecord(layoutOf(this.#stateDirectory, id).record);
    return (await this.#kernelLog.victims(record?.container ?? id)).slice(-count);
  }

  async stats(id: SandboxId): Promise<RuntimeStats | undefined> {
    const record = await readRecord(layoutOf(this.#stateDirectory, id).record);
    return this.#cgroups.stats(record?.container ?? id);
  }

  /** Ends what this object holds; sandboxes run on. */
  async close(): Promise<void> {
    this.#life.abort();
    await this.#roots.close();
    await this.#kernelLog.close();
    await (await this.#prepared)?.close();
    await this.#cgroups.removeParent();
  }

  async stoppedRoot(id: SandboxId): Promise<StoppedRoot | undefined> {
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await readRecord(layout.record);
    // It stays mounted until the sandbox is removed, or this machine restarts.
    if (record?.phase !== 'ended' || !isMounted(layout.root)) return undefined;
    return { path: layout.root, firstId: record.slot === undefined ? 0 : rangeStart(record.slot) };
  }

  /** Directories, and the uid ranges when this host can map owners; once. */
  #prepare(): Promise<UidRanges | undefined> {
    this.#prepared ??= this.#prepareOnce();
    this.#prepared.catch(() => (this.#prepared = undefined));
    return this.#prepared;
  }

  async #prepareOnce(): Promise<UidRanges | undefined> {
    const sandboxes = sandboxesDirectory(this.#stateDirectory);
    await makeDirectories(sandboxes);
    await mkdir(programDirectory(this.#stateDirectory), { recursive: true, mode: 0o700 });
    // The program looks at the root as the sandbox's own root does, so it must be able to pass, and no more.
    for (const path of [this.#stateDirectory, sandboxes]) await chmod(path, 0o711);
    await makeStandbyRoot(this.#stateDirectory);
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
    const begin = async (): Promise<Begun> => {
      const ahead = await this.#fromStandby(layout, request);
      if (ahead !== undefined) return ahead;
      const { slot, owners } = await this.#take(layout, emptyRecord(request, undefined));
      signal.throwIfAborted();
      return await this.#run(layout, request, slot, owners);
    };
    await this.#launch(layout, request, begin, signal);
  }

  /** A sandbox's directory, and its uid range: on disk before anything has its owner. */
  async #take(layout: Layout, record: SandboxRecord): Promise<{ slot: number | undefined; owners: Owners | undefined }> {
    const ranges = await this.#prepare();
    const slot = ranges?.acquire();
    await mkdir(layout.directory, { mode: 0o710 });
    await writeRecord(layout.record, { ...record, slot });
    const owners = await this.#owners(slot);
    ranges?.warm();
    if (owners !== undefined) await chown(layout.directory, 0, owners.start);
    return { slot, owners };
  }

  async #launch(layout: Layout, request: CreateRequest, begin: () => Promise<Begun>, signal: AbortSignal): Promise<void> {
    const endTurn = await this.#starts.take(signal);
    const late = setTimeout(endTurn, startTurnMs);
    let begun: Begun;
    try {
      begun = await begin();
      await this.#complete(layout, request, begun);
    } catch (error) {
      endTurn();
      throw error;
    } finally {
      clearTimeout(late);
    }
    // Most of the work of a start is init's own.
    void this.#commandBegun(begun.record.container ?? request.id).then(endTurn);
  }

  /** Resolves when init has started something, or has ended, or takes long about it. */
  async #commandBegun(container: SandboxId): Promise<void> {
    const deadline = this.#clock.now() + startTurnMs;
    while (this.#cgroups.processes(container) === 1 && this.#clock.now() < deadline) {
      // Closed: nobody waits for a turn any more.
      await this.#clock.sleep(startLookMs, this.#life.signal).catch(() => undefined);
      if (this.#life.signal.aborted) return;
    }
  }

  /** Puts the sandbox's root together and starts its init in it. */
  async #run(layout: Layout, request: CreateRequest, slot: number | undefined, owners: Owners | undefined): Promise<Begun> {
    const uid = owners?.start ?? 0;
    const host = { mounts: this.#mounts, foreign: this.#foreign, owners };
    await together(mountRoot(host, layout, request), rm(layout.pidFile, { force: true }), emptyRunDirectory(request.runDirectory, uid));
    const mountSources = (await mapVolumes(host, layout, request)).map(({ source }) => source);
    const startedAt = this.#clock.now();
    const { pid, gate } = await this.#start(layout, { request, root: layout.root, rangeStart: owners?.start, mountSources });
    // Ended already: then there is no start time, and the next look records the end.
    return { record: { ...emptyRecord(request, slot), phase: 'started', pid, pidStart: processStart(pid), startedAt }, gate, uid };
  }

  async #start(
    layout: Layout,
    options: Pick<SpecOptions, 'request' | 'root' | 'rangeStart' | 'mountSources' | 'standby'>,
  ): Promise<{ pid: number; gate: Disposable }> {
    const { id } = options.request;
    const spec = buildSpec({
      ...options,
      cgroupsPath: this.#cgroups.pathOf(id),
      limitsSwap: this.#cgroups.limitsSwap,
      architecture: process.arch,
      openFiles: Math.min(maxOpenFiles, openFilesLimit()),
    });
    await mkdir(layout.bundle, { recursive: true, mode: 0o700 });
    await writeFile(join(layout.bundle, 'config.json'), JSON.stringify(spec), { mode: 0o600 });
    const gate = await this.#program.run(id, layout.bundle, layout.pidFile, layout.log);
    return { pid: Number(await readFile(layout.pidFile, 'utf8')), gate };
  }

  /** The gate opens at the end of this, however it ends. When it fails, init is killed before: its command has not run, and will not. */
  async #complete(layout: Layout, request: CreateRequest, { record, gate, uid }: Begun): Promise<void> {
    using _gate = gate;
    try {
      await writeRecord(layout.record, record);
      if (request.gate === undefined) return;
      await request.gate.completed;
      await giveAway(request.runDirectory, uid);
      await request.gate.opening();
    } catch (error) {
      if (isSameProcess(record.pid, record.pidStart)) signalProcess(record.pid, 'SIGKILL');
      throw error;
    }
  }

  async #standBy(given: StandbyRequest, signal: AbortSignal): Promise<void> {
    const { id } = given;
    const gate = { completed: Promise.resolve(), opening: async () => await Promise.resolve() };
    const request: CreateRequest = { ...given, hostname: 'standby', layers: [], mounts: [], limits: noLimits, gate };
    await this.#alone(id, async () => {
      const layout = layoutOf(this.#stateDirectory, id);
      try {
        const record: SandboxRecord = { ...emptyRecord(request, undefined), container: id };
        const { slot, owners } = await this.#take(layout, record);
        signal.throwIfAborted();
        await giveAway(given.runDirectory, owners?.start ?? 0);
        const root = standbyRoot(this.#stateDirectory);
        const { pid, gate: held } = await this.#start(layout, {
          request,
          root,
          rangeStart: owners?.start,
          mountSources: [],
          standby: true,
        });
        this.#gates.set(id, held);
        await writeRecord(layout.record, { ...record, slot, pid, pidStart: processStart(pid) });
      } catch (error) {
        await this.#destroy(id).catch((failure: unknown) =>
          this.#logger.warn({ err: failure, standby: id }, 'removing a standby that failed'),
        );
        throw error;
      }
    });
  }

  #standbyHost(): StandbyHost {
    const [mounts, cgroups, roots, foreign] = [this.#mounts, this.#cgroups, this.#roots, this.#foreign];
    return { mounts, cgroups, roots, foreign, owners: async (slot) => await this.#owners(slot) };
  }

  /** Makes the sandbox of its standby; undefined when that cannot be, and nothing is left of either. */
  async #fromStandby(layout: Layout, request: CreateRequest): Promise<Begun | undefined> {
    const { id, standby } = request;
    if (standby === undefined) return undefined;
    const gate = this.#gates.get(standby);
    this.#gates.delete(standby);
    try {
      const moved =
        gate === undefined ? undefined : await moveIn(this.#standbyHost(), layoutOf(this.#stateDirectory, standby), layout, request);
      if (gate !== undefined && moved !== undefined) {
        const { record, uid } = moved;
        return { record: { ...record, phase: 'started', startedAt: this.#clock.now() }, gate, uid };
      }
    } catch (error) {
      this.#logger.warn({ err: error, sandbox: id }, 'a standby could not become a sandbox; it is made without');
    }
    try {
      // Ended before its gate opens: it may have its config already, and only a part of its mounts.
      await this.#destroy(standby);
      await this.#destroy(id);
    } finally {
      gate?.[Symbol.dispose]();
    }
    return undefined;
  }

  async #destroy(id: SandboxId): Promise<void> {
    const layout = layoutOf(this.#stateDirectory, id);
    const record = await readRecord(layout.record);
    const pid = record === undefined ? undefined : this.#livePid(id, layout, record);
    const container = record?.container ?? id;
    // Of one that stands by the program has done its part.
    const stoodBy = record?.container !== undefined && record.pid !== undefined;
    if (record === undefined || (isUnderWay(record) && !stoodBy)) await this.#endProgram(layout);
    if (pid !== undefined) signalProcess(pid, 'SIGKILL');
    this.#gates.get(id)?.[Symbol.dispose]();
    this.#gates.delete(id);
    await this.#cgroups.thaw(container);
    this.#exits.hurry(id);
    await this.#endCgroups(container);
    if (await hasEntry(join(programDirectory(this.#stateDirectory), container))) await this.#program.forget(container);
    await unmountAll(this.#mounts, layout);
    // The record goes last with its directory: until then another destroy finds what is left.
    for (const name of await readdir(layout.directory).catch(() => [])) {
      if (join(layout.directory, name) !== layout.record) await removeTree(join(layout.directory, name));
    }
    await removeTree(layout.directory);
    if (record?.slot !== undefined) (await this.#prepare())?.release(record.slot);
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
      const pids = processesWithArgument(layout.pidFile);
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
    // A standby is no sandbox before its record says that it has started, and its gate opens after that.
    if (record.phase === 'creating' && record.container !== undefined) return undefined;
    if (isSameProcess(record.pid, record.pidStart)) return record.pid;
    if (!isUnderWay(record)) return undefined;
    // The agent died while the program was at it: the program may have finished.
    const pid = readPidFile(layout.pidFile);
    return pid !== undefined && processStart(pid) !== undefined && isInCgroup(pid, record.container ?? id) ? pid : undefined;
  }

  #running(id: SandboxId, record: SandboxRecord, pid: number): RuntimeState {
    const { container = id } = record;
    return {
      phase: this.#cgroups.isFrozen(container) ? 'paused' : 'running',
      pid,
      exitCode: undefined,
      exitSignal: '',
      outOfMemory: false,
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
      exitSignal: exit?.signal ?? '',
      // An init that was killed itself left no record.
      outOfMemory: exit?.outOfMemory ?? this.#cgroups.oomKills(record.container ?? id) > 0,
      startFailure: exit?.reason === 'start-failed' ? exit.message : undefined,
      idle: exit?.reason === 'idle',
      unrecorded: exit === undefined,
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
    return await this.#serial.run(id, task);
  }
}

/** An init that waits at its gate, and what is to be on record of it. */
interface Begun {
  readonly record: SandboxRecord;
  readonly gate: Disposable;
  /** The sandbox's root's on the host. */
  readonly uid: number;
}

function notFound(id: SandboxId): DroverError {
  return new DroverError('sandbox-not-found', `there is no sandbox ${id} on this host`, { hint: '`drover sandbox ls` lists them' });
}
