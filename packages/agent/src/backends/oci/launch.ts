import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import type { SandboxId } from '@drover/foundation';
import { isSameProcess, openFilesLimit, processStart, signalProcess } from '@drover/linux';
import { settled } from '../../concurrency.ts';
import { maxOpenFiles, startPermitMs, startPollMs, startsPerCpu } from '../../limits.ts';
import type { ContainerRequest, StartGate } from './container.ts';
import { emptyRecord, writeRecord, type ContainerRecord } from './container-record.ts';
import type { Layout } from './layout.ts';
import type { OciHost } from './oci-host.ts';
import { emptyRunDirectory, giveAway, mapVolumes, mountRoot, type Owners } from './rootfs.ts';
import { Semaphore } from './semaphore.ts';
import { buildSpec, type SpecOptions } from './spec.ts';

/** An init that waits at its gate, with the record that is to be written. */
export interface WaitingInit {
  readonly record: ContainerRecord;
  /** Disposed of: open. */
  readonly gate: Disposable;
  /** Of the sandbox's root, on the host. */
  readonly uid: number;
}

/** Starts inits, as many concurrently as the CPUs serve, and opens their gates. */
export class Launcher {
  readonly #host: OciHost;
  readonly #permits = new Semaphore(Math.ceil(availableParallelism() * startsPerCpu));
  readonly #life = new AbortController();

  constructor(host: OciHost) {
    this.#host = host;
  }

  close(): void {
    this.#life.abort();
  }

  /** Runs one start, whose init `begin` starts, up to the opening of its gate. The permit is held until the command has begun. */
  async launch(request: ContainerRequest, gate: StartGate, begin: () => Promise<WaitingInit>, signal: AbortSignal): Promise<void> {
    const release = await this.#permits.acquire(signal);
    const late = setTimeout(release, startPermitMs);
    let waiting: WaitingInit;
    try {
      waiting = await begin();
      await this.#open(request, gate, waiting);
    } catch (error) {
      release();
      throw error;
    } finally {
      clearTimeout(late);
    }
    // Most of the work of a start is init's own.
    void this.#commandBegun(waiting.record.container ?? request.id).then(release);
  }

  /** Mounts the container's root and starts init in it. */
  async run(request: ContainerRequest, slot: number | undefined, owners: Owners | undefined): Promise<WaitingInit> {
    const { mounts, foreign, clock } = this.#host;
    const layout = this.#host.layoutOf(request.id);
    const uid = owners?.start ?? 0;
    const host = { mounts, foreign, owners };
    await settled(mountRoot(host, layout, request), rm(layout.pidFile, { force: true }), emptyRunDirectory(request.runDirectory, uid));
    const mountSources = (await mapVolumes(host, layout, request)).map(({ source }) => source);
    const startedAt = clock.now();
    const { pid, gate } = await this.startInit(layout, { request, root: layout.root, rangeStart: owners?.start, mountSources });
    // An init that has ended already has no start time, and the next inspection records its end.
    return { record: { ...emptyRecord(request, slot), phase: 'started', pid, pidStart: processStart(pid), startedAt }, gate, uid };
  }

  async startInit(
    layout: Layout,
    options: Pick<SpecOptions, 'request' | 'root' | 'rangeStart' | 'mountSources' | 'standby'>,
  ): Promise<{ readonly pid: number; readonly gate: Disposable }> {
    const { cgroups, program } = this.#host;
    const { id } = options.request;
    const spec = buildSpec({
      ...options,
      cgroupsPath: cgroups.pathOf(id),
      limitsSwap: cgroups.limitsSwap,
      architecture: process.arch,
      openFiles: Math.min(maxOpenFiles, openFilesLimit()),
    });
    await mkdir(layout.bundle, { recursive: true, mode: 0o700 });
    await writeFile(join(layout.bundle, 'config.json'), JSON.stringify(spec), { mode: 0o600 });
    const gate = await program.run(id, layout.bundle, layout.pidFile, layout.log);
    return { pid: Number(await readFile(layout.pidFile, 'utf8')), gate };
  }

  /** The gate opens at the end, whatever the outcome. After a failure init is killed first: its command has not run, and will not. */
  async #open(
    { id, runDirectory }: ContainerRequest,
    { completed, opening }: StartGate,
    { record, gate, uid }: WaitingInit,
  ): Promise<void> {
    using _gate = gate;
    try {
      await writeRecord(this.#host.layoutOf(id).record, record);
      await completed;
      await giveAway(runDirectory, uid);
      await opening();
    } catch (error) {
      if (isSameProcess(record.pid, record.pidStart)) signalProcess(record.pid, 'SIGKILL');
      throw error;
    }
  }

  /** Resolves when init has started a process, has ended, or takes long. */
  async #commandBegun(container: SandboxId): Promise<void> {
    const { cgroups, clock } = this.#host;
    const deadline = clock.now() + startPermitMs;
    while (cgroups.processes(container) === 1 && clock.now() < deadline) {
      // Closed: no start waits for a permit any more.
      await clock.sleep(startPollMs, this.#life.signal).catch(() => undefined);
      if (this.#life.signal.aborted) return;
    }
  }
}
