import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  DroverError,
  formatBytes,
  parseSandboxId,
  sentenceOf,
  SerialExecutor,
  systemClock,
  type Clock,
  type Logger,
  type SandboxId,
} from '@drover/foundation';
import { link, type sandbox } from '@drover/protocol';
import { killGraceMs } from '@drover/spec';
import { hostDiskFull } from '../disks/index.ts';
import type { HostEventInit } from '../link/host-events.ts';
import { lastBytesMs, maxOomVictims, maxOperationsPerSandbox, pullMessageMs, resourceCheckMs } from '../limits.ts';
import type { Runtime, RuntimeState, RuntimeStats } from '../runtimes/runtime.ts';
import { endOf, endWithin, StopGrace, stopGraceMs } from './ending.ts';
import { copyEnded } from './copy-ended.ts';
import { limitsReached, volumesOf } from './limits-reached.ts';
import { keptLogs } from './logs.ts';
import { prepareStart, type StartOptions } from './preparing.ts';
import { observationOf, RecordStore, type SandboxRecord } from './record.ts';
import { removeRunDirectory, removeStartMaterial, restoreRunDirectory, runDirectoryOf, sweepRunDirectories } from './run-directory.ts';
import type { HostStream, HostStreamPart, HostStreamSource, Sandboxes } from './sandboxes.ts';
import { Standbys } from './standbys.ts';

export interface SandboxManagerOptions extends StartOptions {
  readonly runtimes: readonly Runtime[];
  readonly logger: Logger;
  readonly clock?: Clock;
  /** Sandboxes that are kept ready ahead of creates; default: none. */
  readonly standbys?: number;
  /** What the kernel calls this boot of the host (random/boot_id): a sandbox that was started in another died with it. */
  readonly bootId?: string;
  /** Reports what happened in a sandbox. */
  readonly report: (event: HostEventInit) => void;
  /** The agent's lifetime: work on sandboxes lives under it, never under a command's (L-21, L-23). */
  readonly signal: AbortSignal;
}

/** What of a sandbox's network is closed by containment (I-4). */
type Closed = Pick<SandboxRecord, 'networkCut' | 'registrationClosed'>;

interface Entry {
  record: SandboxRecord;
  readonly operations: SerialExecutor;
  /** Aborted when a create under way is no longer wanted, so that stop and destroy need not wait for it. */
  making: AbortController | undefined;
  /** Ends the wait for this start's exit. */
  watch: AbortController | undefined;
  /** Connections into it that have not been read to their end. */
  readonly dialled: Set<Duplex>;
  /** What is left to it while it is stopped; a further stop may make it shorter. */
  grace: StopGrace | undefined;
  /** The newest that was said of its network (I-4), also while it is made; the record has what is in force. */
  wish: Closed & { readonly generation: number };
}

/** One owner per sandbox: the entry's executor. Everything that changes a record runs in it. */
export class SandboxManager implements Sandboxes {
  readonly #options: SandboxManagerOptions;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #records: RecordStore;
  readonly #standbys: Standbys | undefined;
  readonly #entries = new Map<SandboxId, Entry>();
  readonly #listeners = new Set<(observation: sandbox.SandboxObservation) => void>();

  constructor(options: SandboxManagerOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#logger = options.logger;
    this.#records = new RecordStore(join(options.stateDirectory, 'records'), options.logger);
    const { standbys: count = 0, runtimes } = options;
    const [runtime] = runtimes;
    if (runtime !== undefined && count > 0) this.#standbys = new Standbys({ ...options, clock: this.#clock, runtime, count });
  }

  async start(): Promise<void> {
    await mkdir(join(this.#options.stateDirectory, 'run'), { recursive: true, mode: 0o711 });
    for (const record of await this.#records.load()) this.#entries.set(record.id, newEntry(record));
    const known = new Set(this.#entries.keys());
    // First: a pool that is not the sandboxes' own is refused before anything of theirs is touched.
    await this.#options.network.start(known);
    // One after the other: after a boot of the host, each is a mount. One that fails must not keep the other sandboxes from the agent.
    for (const id of known) {
      await restoreRunDirectory(this.#options.stateDirectory, id).catch((error: unknown) => {
        this.#logger.error({ err: error, sandbox: id }, 'the run directory of a sandbox could not be mounted: its log is not available');
      });
    }
    await Promise.all([...this.#entries.values()].map((entry) => entry.operations.run(() => this.#adopt(entry))));
    const kept = new Set(this.#entries.keys());
    for (const runtime of this.#options.runtimes) {
      const swept = await runtime.sweep(kept);
      if (swept.length > 0) this.#logger.warn({ runtime: runtime.name, swept }, 'removed what an earlier life left behind');
    }
    await this.#options.images.retain(kept);
    await sweepRunDirectories(this.#options.stateDirectory, kept);
    this.#standbys?.fill();
  }

  async create(command: link.CreateSandbox, progress: (progress: link.CommandProgress) => void): Promise<sandbox.SandboxObservation> {
    const id = idOf(command.sandbox);
    let entry = this.#entries.get(id);
    if (entry === undefined) {
      const spec = command.spec;
      if (spec === undefined) throw new DroverError('protocol-violation', 'the create command holds no spec');
      const runtime = this.#runtime(spec.runtime);
      entry = newEntry({
        id,
        project: command.project,
        name: command.name,
        spec,
        runtime: runtime.name,
        generation: generationOf(command.sandbox),
        phase: 'preparing',
        reason: '',
        message: '',
        exitCode: undefined,
        exitSignal: '',
        outOfMemory: false,
        oomKills: 0,
        startedAt: undefined,
        finishedAt: undefined,
        startCount: 0,
        imageDigest: '',
        address: '',
        networkCut: command.networkCut,
        registrationClosed: command.registrationClosed,
        bootId: '',
        sequence: 0,
      });
      this.#entries.set(id, entry);
    }
    const own = entry;
    wishNetwork(own, command);
    return await own.operations.run(async () => {
      this.#mustStillBe(own);
      // L-19: what exists is returned. A sandbox that never came to its first start does not exist yet.
      if (own.record.startCount > 0) return await this.#touch(own, command.sandbox);
      return await this.#make(own, generationOf(command.sandbox), command.secrets, progress);
    });
  }

  async startAgain(command: link.StartSandbox): Promise<sandbox.SandboxObservation> {
    const entry = this.#entry(idOf(command.sandbox));
    wishNetwork(entry, command);
    return await entry.operations.run(async () => {
      this.#mustStillBe(entry);
      const { phase, generation } = entry.record;
      if (phase === 'running' || phase === 'paused') return await this.#touch(entry, command.sandbox);
      // L-19: the run that it asks for has been, and is over.
      if (phase !== 'preparing' && generationOf(command.sandbox) <= generation) return observationOf(entry.record);
      return await this.#make(entry, generationOf(command.sandbox), command.secrets, () => undefined);
    });
  }

  async stop(command: link.StopSandbox): Promise<sandbox.SandboxObservation | undefined> {
    const entry = this.#entries.get(idOf(command.sandbox));
    if (entry === undefined) return undefined;
    entry.making?.abort(new DroverError('cancelled', 'the sandbox is to be stopped'));
    const graceMs = stopGraceMs(command.graceMs || entry.record.spec.stopGraceMs);
    // One that is to be killed does not wait for the grace of the stop before.
    entry.grace?.shorten(graceMs);
    return await entry.operations.run(async () => {
      if (this.#entries.get(entry.record.id) !== entry) return undefined;
      const { phase } = entry.record;
      if (phase === 'running' || phase === 'paused' || phase === 'starting' || phase === 'stopping') {
        const runtime = this.#runtime(entry.record.runtime);
        using grace = new StopGrace(graceMs);
        entry.grace = grace;
        await this.#update(entry, { phase: 'stopping', generation: generationOf(command.sandbox) });
        await endWithin(runtime, entry.record.id, grace, this.#options.signal).finally(() => (entry.grace = undefined));
        await this.#recordEnd(entry, await runtime.inspect(entry.record.id), 'stopped');
        return observationOf(entry.record);
      }
      if (phase === 'preparing') await this.#update(entry, { phase: 'stopped', reason: 'stopped', message: 'stopped before it was made' });
      return await this.#touch(entry, command.sandbox);
    });
  }

  async pause(command: link.PauseSandbox): Promise<sandbox.SandboxObservation> {
    return await this.#switch(command.sandbox, 'running', 'paused', async (runtime, id) => await runtime.pause(id));
  }

  async resume(command: link.ResumeSandbox): Promise<sandbox.SandboxObservation> {
    return await this.#switch(command.sandbox, 'paused', 'running', async (runtime, id) => await runtime.resume(id));
  }

  async setNetworkCut(command: link.SetNetworkCut): Promise<sandbox.SandboxObservation> {
    const entry = this.#entry(idOf(command.sandbox));
    const { id } = entry.record;
    const hasNetwork = (): boolean => entry.record.address !== '';
    wishNetwork(entry, { sandbox: command.sandbox, networkCut: command.cut, registrationClosed: command.registrationClosed });
    // I-4: a cut does not wait for what is under way, such as a stop with a long grace. What fails here is done, and told, below. One
    // that is being made and has no network yet is started with it.
    if (entry.operations.waiting > 0 && hasNetwork()) {
      const { network } = this.#options;
      if (command.cut) await network.setCut(id, true).catch(() => undefined);
      if (command.registrationClosed) await network.setRegistrationClosed(id, true).catch(() => undefined);
    }
    return await entry.operations.run(async () => {
      this.#mustStillBe(entry);
      const closed = closedOf(entry.wish);
      // In force before it is reported; without a network there is nothing to cut until the next start.
      if (hasNetwork()) await this.#close(id, closed);
      if (isSame(entry.record, closed)) return await this.#touch(entry, command.sandbox);
      await this.#update(entry, { ...closed, generation: generationOf(command.sandbox) });
      return observationOf(entry.record);
    });
  }

  async destroy(command: link.DestroySandbox): Promise<void> {
    const id = idOf(command.sandbox);
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    entry.making?.abort(new DroverError('cancelled', 'the sandbox is to be destroyed'));
    entry.grace?.shorten(killGraceMs);
    await entry.operations.run(async () => {
      if (this.#entries.get(id) !== entry) return;
      entry.watch?.abort();
      await this.#runtime(entry.record.runtime).destroy(id);
      await this.#options.network.release(id);
      await this.#options.images.release(id);
      await removeRunDirectory(this.#options.stateDirectory, id);
      await this.#records.remove(id);
      this.#entries.delete(id);
    });
  }

  async inspect(id: SandboxId): Promise<sandbox.SandboxObservation> {
    const entry = this.#entry(id);
    return await Promise.resolve(observationOf(entry.record));
  }

  list(): readonly sandbox.SandboxObservation[] {
    return [...this.#entries.values()].map((entry) => observationOf(entry.record));
  }

  async applyPolicy(command: link.ApplyPolicy): Promise<void> {
    const entry = this.#entry(parseSandboxId(command.sandboxId));
    await entry.operations.run(async () => {
      await this.#options.network.applyPolicy(entry.record.id, command.allow);
    });
  }

  hostStream(id: SandboxId, source: HostStreamSource, signal: AbortSignal): HostStream {
    const entry = this.#entry(id);
    if (source.case === 'logs') return keptLogs(this.#runDirectory(entry.record.id), source.value, signal);
    return this.#copyEnded(entry, source.value, signal);
  }

  async *#copyEnded({ record }: Entry, wanted: link.HostCopyOut, signal: AbortSignal): AsyncGenerator<HostStreamPart> {
    const root = await this.#runtime(record.runtime).stoppedRoot(record.id);
    if (root === undefined) {
      throw new DroverError('failed-precondition', 'the host does not have the files of this sandbox at hand', {
        hint: 'start it and copy then: it runs, never ran, or its host was restarted since it ended',
      });
    }
    yield* copyEnded(root, record.spec.workdir === '' ? '/' : record.spec.workdir, wanted, signal);
  }

  async stats(command: link.CollectStats): Promise<link.Stats> {
    const asked = command.sandboxIds.length === 0 ? [...this.#entries.keys()] : command.sandboxIds.map(parseSandboxId);
    const stats = await Promise.all(
      asked.map(async (id) => {
        const entry = this.#entries.get(id);
        const running = entry?.record.phase === 'running' || entry?.record.phase === 'paused';
        const used = entry !== undefined && running ? await this.#runtime(entry.record.runtime).stats(id) : undefined;
        return used === undefined ? [] : [statsOf(id, used, this.#clock.now())];
      }),
    );
    return create(link.StatsSchema, { sandboxes: stats.flat() });
  }

  async dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex> {
    const entry = this.#entry(id);
    // The control plane dials as soon as it hears of a start: the one under way is waited for.
    if (port === 'init' && entry.making !== undefined) await entry.operations.run(() => Promise.resolve());
    const stream = await this.#runtime(entry.record.runtime).dial(id, port, signal);
    entry.dialled.add(stream);
    for (const event of ['end', 'close']) stream.once(event, () => entry.dialled.delete(stream));
    return stream;
  }

  onObserved(listener: (observation: sandbox.SandboxObservation) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async close(): Promise<void> {
    for (const entry of this.#entries.values()) entry.watch?.abort();
    await this.#standbys?.close();
    await Promise.all([...this.#entries.values()].map(async (entry) => await entry.operations.idle()));
    await this.#options.network.close();
  }

  /** Prepares and starts one run of the sandbox; whatever fails is taken back, and the record says why. */
  async #make(
    entry: Entry,
    generation: number,
    secrets: readonly sandbox.SecretValue[],
    progress: (progress: link.CommandProgress) => void,
  ): Promise<sandbox.SandboxObservation> {
    const making = new AbortController();
    entry.making = making;
    const signal = AbortSignal.any([this.#options.signal, making.signal]);
    const { id, spec } = entry.record;
    const runtime = this.#runtime(entry.record.runtime);
    const first = entry.record.startCount === 0;
    let settled: Promise<void> | undefined;
    using _underWay = this.#standbys?.startUnderWay();
    // A sandbox that has been before has a root and a range of uids of its own.
    let standby = first ? this.#standbys?.take(runtime) : undefined;
    try {
      await this.#update(entry, {
        phase: 'preparing',
        generation,
        reason: '',
        message: `preparing the image ${spec.image}`,
        exitCode: undefined,
        exitSignal: '',
        outOfMemory: false,
        oomKills: 0,
        finishedAt: undefined,
        bootId: this.#options.bootId ?? '',
        ...closedOf(entry.wish),
      });
      const shown = this.#showProgress(entry, progress);
      const start = await prepareStart(this.#options, entry.record, secrets, shown, standby, signal);
      const { imageDigest, request, completed } = start;
      settled = start.settled;
      const opening = async (): Promise<void> => {
        let closed = closedOf(entry.record);
        // I-4: what was said of its network while it was prepared is in force before anything runs in it.
        while (!isSame(closed, entry.wish)) {
          closed = closedOf(entry.wish);
          await this.#close(id, closed);
        }
        // With its address in the record, at once after that look, a further cut is done by itself. R-9: what is on record as being
        // prepared has run nothing; from here on there is nothing left to be done for it.
        const { address } = request.network;
        await this.#update(entry, { phase: 'starting', message: '', imageDigest, address, ...closed });
      };
      const gated = { ...request, gate: { completed, opening } };
      // The runtime's from here on.
      if (request.standby !== undefined) standby = undefined;
      await (first ? runtime.create(gated, signal) : runtime.start(gated, signal));
      const state = await runtime.inspect(id);
      await this.#update(entry, { phase: 'running', startCount: start.startCount, startedAt: state?.startedAt ?? this.#clock.now() });
      this.#watchExit(entry);
      return observationOf(entry.record);
    } catch (thrown) {
      const known = DroverError.from(signal.aborted ? (signal.reason ?? thrown) : thrown, 'runtime-failed');
      const isOwnDisk = known.code === 'disk-full' && thrown !== known;
      const error = isOwnDisk ? await hostDiskFull(this.#options.stateDirectory, 'the sandbox cannot be started', thrown) : known;
      const cancelled = signal.aborted;
      making.abort(error);
      // What still writes there would bring back what is taken away.
      await settled;
      await this.#takeBack(entry, runtime, first);
      const why = { reason: error.code, message: sentenceOf(error), address: '' };
      // L-22: what may pass does not fail the sandbox. It is still to be made, and the control plane says how often that is tried.
      if (cancelled || mayPass(error)) await this.#update(entry, { ...why, phase: 'preparing' });
      else await this.#update(entry, { ...why, phase: 'failed', finishedAt: this.#clock.now() });
      throw error;
    } finally {
      entry.making = undefined;
      if (standby !== undefined) await this.#standbys?.discard(standby);
    }
  }

  /** How far the image is stands in the sandbox's own message too, at a bounded rate: `drover run` and `sandbox get` show it. */
  #showProgress(entry: Entry, progress: (progress: link.CommandProgress) => void): (progress: link.CommandProgress) => void {
    let shownAt = this.#clock.now();
    return (next) => {
      progress(next);
      const { phase } = entry.record;
      if (phase !== 'preparing' || next.layersTotal === 0 || this.#clock.now() - shownAt < pullMessageMs) return;
      shownAt = this.#clock.now();
      const message = `${next.message}: ${next.layersDone} of ${next.layersTotal} layers, ${formatBytes(Number(next.done))} of ${formatBytes(Number(next.total))}`;
      this.#update(entry, { message }).catch((error: unknown) => {
        // The next one follows.
        this.#logger.debug({ err: error, sandbox: entry.record.id }, 'the progress of an image could not be recorded');
      });
    };
  }

  /** After a failed make nothing half made is left: the first start's root goes too, a later one's stays for the next try. */
  async #takeBack(entry: Entry, runtime: Runtime, first: boolean): Promise<void> {
    const { id } = entry.record;
    const steps: readonly (() => Promise<void>)[] = first
      ? [
          () => runtime.destroy(id),
          () => this.#options.network.release(id),
          () => this.#options.images.release(id),
          () => removeRunDirectory(this.#options.stateDirectory, id),
        ]
      : [() => runtime.kill(id, 'SIGKILL'), () => this.#options.network.release(id), () => removeStartMaterial(this.#runDirectory(id))];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        // The failure that led here is the one to report; what stays is swept at the next start or destroy.
        this.#logger.error({ err: error, sandbox: id }, 'cleaning up after a failed start');
      }
    }
  }

  #watchExit(entry: Entry): void {
    const watch = new AbortController();
    entry.watch = watch;
    const { id, startCount, runtime } = entry.record;
    const signal = AbortSignal.any([this.#options.signal, watch.signal]);
    const waiting = this.#runtime(runtime)
      .waitExit(id, signal)
      .then(
        async () =>
          await entry.operations.run(async () => {
            const current = entry.record.startCount === startCount && (entry.record.phase === 'running' || entry.record.phase === 'paused');
            if (!current || this.#entries.get(id) !== entry) return;
            await this.#recordEnd(entry, await this.#runtime(runtime).inspect(id), 'exited');
          }),
      );
    waiting.catch((error: unknown) => {
      if (!signal.aborted) this.#logger.error({ err: error, sandbox: id }, 'waiting for the end of a sandbox');
    });
    this.#watchResources(entry, signal).catch((error: unknown) => {
      if (!signal.aborted) this.#logger.error({ err: error, sandbox: id }, 'watching the resources of a sandbox');
    });
  }

  /** each kill for want of memory is an event, by the names of the processes where the kernel gives them; so is a limit that is reached. */
  async #watchResources(entry: Entry, signal: AbortSignal): Promise<void> {
    const { id } = entry.record;
    const reported = new Set<string>();
    let isFailing = false;
    for (;;) {
      await this.#clock.sleep(resourceCheckMs, signal);
      try {
        await this.#checkResources(entry, reported, signal);
        isFailing = false;
      } catch (error) {
        // The next check finds what this one missed; a check that keeps failing is logged once.
        if (!isFailing && !signal.aborted)
          this.#logger.warn({ err: error, sandbox: id }, 'the resources of a sandbox could not be checked');
        isFailing = true;
      }
    }
  }

  /** @param reported the resources whose limits were reached at the check before; replaced */
  async #checkResources(entry: Entry, reported: Set<string>, signal: AbortSignal): Promise<void> {
    const { id, startCount } = entry.record;
    const runtime = this.#runtime(entry.record.runtime);
    const kills = await runtime.oomKills(id);
    const limits = limitsReached(await runtime.exhausted(id), await this.#options.volumes.full(volumesOf(entry.record)));
    const message = limits.map((limit) => limit.message).join('; ');
    if (kills <= entry.record.oomKills && message === entry.record.message) return;
    await entry.operations.run(async () => {
      if (signal.aborted || entry.record.startCount !== startCount) return;
      await this.#reportOomKills(entry);
      if (entry.record.phase !== 'running' && entry.record.phase !== 'paused') return;
      for (const { resource, message: text } of limits.filter((limit) => !reported.has(limit.resource))) {
        const at = timestampFromMs(this.#clock.now());
        this.#options.report({ sandboxId: id, at, event: { case: 'limitReached', value: { resource, message: text } } });
      }
      reported.clear();
      for (const { resource } of limits) reported.add(resource);
      if (message !== entry.record.message) await this.#update(entry, { message });
    });
  }

  async #reportOomKills(entry: Entry): Promise<void> {
    const { id, oomKills } = entry.record;
    const runtime = this.#runtime(entry.record.runtime);
    const total = await runtime.oomKills(id);
    if (total <= oomKills) return;
    const victims = await runtime.oomVictims(id, Math.min(total - oomKills, maxOomVictims));
    const kills = new Map<string, number>();
    for (const name of victims) kills.set(name, (kills.get(name) ?? 0) + 1);
    if (victims.length < total - oomKills) kills.set('', total - oomKills - victims.length);
    for (const [process, count] of kills) {
      const at = timestampFromMs(this.#clock.now());
      this.#options.report({ sandboxId: id, at, event: { case: 'oomKill', value: { process, count } } });
    }
    await this.#update(entry, { oomKills: total });
  }

  async #recordEnd(entry: Entry, state: RuntimeState | undefined, reason: Parameters<typeof endOf>[2]): Promise<void> {
    entry.watch?.abort();
    await this.#reportOomKills(entry).catch((error: unknown) => {
      this.#logger.warn({ err: error, sandbox: entry.record.id }, 'out-of-memory kills of a sandbox that ended could not be reported');
    });
    const { id, spec, networkCut } = entry.record;
    // What its processes had written is still on its way, and goes with the interface.
    if (!networkCut) await readToEnd(entry.dialled);
    await this.#options.network.release(id);
    // init reads and removes it; one that was killed before it could has left it.
    await removeStartMaterial(this.#runDirectory(id));
    await this.#update(entry, { ...endOf(spec, state, reason), finishedAt: state?.finishedAt ?? this.#clock.now(), address: '' });
  }

  async #switch(
    ref: link.SandboxRef | undefined,
    from: 'running' | 'paused',
    to: 'running' | 'paused',
    act: (runtime: Runtime, id: SandboxId) => Promise<void>,
  ): Promise<sandbox.SandboxObservation> {
    const entry = this.#entry(idOf(ref));
    return await entry.operations.run(async () => {
      this.#mustStillBe(entry);
      const { phase, id } = entry.record;
      if (phase === to) return await this.#touch(entry, ref);
      if (phase !== from) {
        throw new DroverError('sandbox-not-running', `the sandbox ${entry.record.name} is ${phase}, not ${from}`, {
          hint: `see drover sandbox get ${entry.record.name}`,
        });
      }
      await act(this.#runtime(entry.record.runtime), id);
      await this.#update(entry, { phase: to, generation: generationOf(ref) });
      return observationOf(entry.record);
    });
  }

  /** Brings a record that an earlier agent left in line with what is there. */
  async #adopt(entry: Entry): Promise<void> {
    const { id, phase, startCount, bootId } = entry.record;
    const runtime = this.#runtime(entry.record.runtime);
    if (phase === 'preparing') {
      // Whatever there is of this start, its init was not told to go on. It is taken back, and the control plane asks again.
      await this.#takeBack(entry, runtime, startCount === 0);
      if (startCount > 0) return;
      await this.#records.remove(id);
      this.#entries.delete(id);
      return;
    }
    const state = await runtime.inspect(id);
    if (state !== undefined && state.phase !== 'ended') {
      // Killed between the start and the record of it: it is the start that was under way.
      const counted = phase === 'starting' ? startCount + 1 : startCount;
      await this.#update(entry, { phase: state.phase, startCount: counted, startedAt: state.startedAt ?? entry.record.startedAt });
      await this.#close(id, entry.record).catch((error: unknown) => {
        this.#logger.error({ sandbox: id, err: String(error) }, 'the network cut of an adopted sandbox could not be set');
      });
      // Without the gateway nothing leaves the sandbox; the gateway gets the table when it is up.
      await this.#options.network.applyPolicy(id, entry.record.spec.allow).catch((error: unknown) => {
        this.#logger.error({ sandbox: id, err: String(error) }, 'the policy of an adopted sandbox is not in force yet');
      });
      this.#watchExit(entry);
      this.#logger.info({ sandbox: id, phase: state.phase }, 'adopted');
      return;
    }
    if (phase === 'stopped' || phase === 'failed') return;
    if (state === undefined && startCount === 0) {
      // Never came to be: what was begun is taken back, and the control plane asks again.
      await this.#takeBack(entry, runtime, true);
      await this.#records.remove(id);
      this.#entries.delete(id);
      return;
    }
    if (phase === 'starting' && startCount === 0) await this.#update(entry, { startCount: 1 });
    const restarted = bootId !== '' && bootId !== this.#options.bootId;
    await this.#recordEnd(entry, state, phase === 'stopping' ? 'stopped' : restarted ? 'host-restarted' : 'exited');
  }

  async #close(id: SandboxId, { networkCut, registrationClosed }: Closed): Promise<void> {
    const { network } = this.#options;
    // A cut comes first: a failure of the rest must not leave the network open.
    if (networkCut) await network.setCut(id, true);
    await network.setRegistrationClosed(id, registrationClosed);
    if (!networkCut) await network.setCut(id, false);
  }

  /** Takes note of a generation that asks for what is already so. */
  async #touch(entry: Entry, ref: link.SandboxRef | undefined): Promise<sandbox.SandboxObservation> {
    const generation = generationOf(ref);
    if (generation > entry.record.generation) await this.#update(entry, { generation });
    return observationOf(entry.record);
  }

  async #update(entry: Entry, change: Partial<SandboxRecord>): Promise<void> {
    const generation = Math.max(entry.record.generation, change.generation ?? 0);
    // Rises over restarts of the agent too, without being read back: the clock carries it.
    const sequence = Math.max(entry.record.sequence + 1, this.#clock.now() * 1000);
    entry.record = { ...entry.record, ...change, generation, sequence };
    await this.#records.save(entry.record);
    const observation = observationOf(entry.record);
    for (const listener of this.#listeners) listener(observation);
  }

  #entry(id: SandboxId): Entry {
    const entry = this.#entries.get(id);
    if (entry === undefined) throw new DroverError('sandbox-not-found', `the sandbox ${id} is not on this host`);
    return entry;
  }

  /** An operation that waited behind a destroy finds nothing to work on. */
  #mustStillBe(entry: Entry): void {
    if (this.#entries.get(entry.record.id) !== entry) {
      throw new DroverError('sandbox-not-found', `the sandbox ${entry.record.id} was destroyed in the meantime`);
    }
  }

  #runtime(name: string): Runtime {
    const found = name === '' ? this.#options.runtimes[0] : this.#options.runtimes.find((runtime) => runtime.name === name);
    if (found === undefined) {
      throw new DroverError('missing-component', name === '' ? 'this host has no runtime' : `this host has no ${name} runtime`, {
        hint: 'see drover doctor on the host',
      });
    }
    return found;
  }

  #runDirectory(id: SandboxId): string {
    return runDirectoryOf(this.#options.stateDirectory, id);
  }
}

function newEntry(record: SandboxRecord): Entry {
  const { generation } = record;
  return {
    record,
    operations: new SerialExecutor(maxOperationsPerSandbox),
    making: undefined,
    watch: undefined,
    dialled: new Set(),
    grace: undefined,
    wish: { ...closedOf(record), generation },
  };
}

/** Waits until each of them is at its end, and no longer than `lastBytesMs`. */
async function readToEnd(streams: ReadonlySet<Duplex>): Promise<void> {
  if (streams.size === 0) return;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, lastBytesMs)));
  const ended = [...streams].map(
    async (stream) =>
      await new Promise<void>((resolve) => {
        for (const event of ['end', 'close']) stream.once(event, resolve);
      }),
  );
  await Promise.race([Promise.all(ended), late]);
  clearTimeout(timer);
}

/** Takes in what a command says of the network: it counts from when it comes, and not from when its turn does. An older one changes nothing. */
function wishNetwork(entry: Entry, said: Closed & { readonly sandbox?: link.SandboxRef | undefined }): void {
  const generation = generationOf(said.sandbox);
  if (generation >= entry.wish.generation) entry.wish = { ...closedOf(said), generation };
}

function closedOf({ networkCut, registrationClosed }: Closed): Closed {
  return { networkCut, registrationClosed };
}

function isSame(a: Closed, b: Closed): boolean {
  return a.networkCut === b.networkCut && a.registrationClosed === b.registrationClosed;
}

/** May the same start succeed later? Not asked for again is what was tried here often enough: a registry has tries of its own. */
function mayPass(error: DroverError): boolean {
  return error.transient && error.code !== 'registry-unreachable';
}

function idOf(ref: link.SandboxRef | undefined): SandboxId {
  return parseSandboxId(ref?.sandboxId ?? '');
}

function generationOf(ref: link.SandboxRef | undefined): number {
  return Number(ref?.generation ?? 0n);
}

function statsOf(id: SandboxId, used: RuntimeStats, now: number): MessageInitShape<typeof link.SandboxStatsSchema> {
  const { cpuUsec, memoryBytes, pids } = used;
  return { sandboxId: id, cpuUsec: BigInt(cpuUsec), memoryBytes: BigInt(memoryBytes), pids, at: timestampFromMs(now) };
}
