import type { Duplex } from 'node:stream';
import { DroverError, formatBytes, SerialExecutor, type SandboxId } from '@drover/foundation';
import { readLog, type LogEntry } from '@drover/init';
import type { sandbox } from '@drover/protocol';
import { killGraceMs } from '@drover/spec';
import { type Policy } from '@drover/spec/policy';
import type { Backend, SandboxState } from '../backends/index.ts';
import { hostDiskFull } from '../disks/index.ts';
import type { PullProgress } from '../images/index.ts';
import { maxOperationsPerSandbox, pullMessageMs } from '../limits.ts';
import { closureOf, isSameClosure, newerClosure, setClosure, type RequestedClosure } from './closure.ts';
import { OpenConnections } from './connections.ts';
import { copyEnded } from './copy-ended.ts';
import { endOf, endWithin, StopGrace } from './ending.ts';
import { observationOf, type SandboxRecord } from './record.ts';
import { reportOomKills, watchResources } from './resources.ts';
import { removeRunDirectory, removeStartMaterial, runDirectoryOf } from './run-directory.ts';
import type {
  CopyPart,
  CopySource,
  CreateCommand,
  LogOptions,
  NetworkClosure,
  SandboxCommand,
  SandboxStats,
  StartCommand,
  StopCommand,
} from './sandboxes.ts';
import { requestStart, type SandboxHost } from './start.ts';

type Observation = sandbox.SandboxObservation;
type Progress = (progress: PullProgress) => void;

/** One sandbox of this host: one record, and one executor in which everything that changes the record runs. */
export class Sandbox {
  readonly #host: SandboxHost;
  readonly #backend: Backend;
  readonly #operations = new SerialExecutor(maxOperationsPerSandbox);
  readonly #connections = new OpenConnections();
  #record: SandboxRecord;
  #isDestroyed = false;
  /** Aborted to cancel a start under way, so that stop and destroy need not wait for it. */
  #starting: AbortController | undefined;
  /** Ends the wait for the exit of the current run. */
  #watch: AbortController | undefined;
  /** The grace of a stop under way; a further stop may shorten it. */
  #grace: StopGrace | undefined;
  /** The newest request; the record has the state in force. */
  #requested: RequestedClosure;

  constructor(host: SandboxHost, backend: Backend, record: SandboxRecord) {
    this.#host = host;
    this.#backend = backend;
    this.#record = record;
    this.#requested = { ...closureOf(record), generation: record.generation };
  }

  get observation(): Observation {
    return observationOf(this.#record);
  }

  async create(command: CreateCommand, onProgress: Progress): Promise<Observation> {
    this.#requested = newerClosure(this.#requested, command);
    return await this.#exclusively(async () => {
      // L-19: a sandbox that exists is returned. Before its first start it does not exist.
      if (this.#record.startCount > 0) return await this.#acknowledge(command);
      return await this.#start(command, onProgress);
    });
  }

  async start(command: StartCommand): Promise<Observation> {
    this.#requested = newerClosure(this.#requested, command);
    return await this.#exclusively(async () => {
      const { phase, generation } = this.#record;
      if (this.#isRunning()) return await this.#acknowledge(command);
      // L-19: the requested run has taken place, and has ended.
      if (phase !== 'preparing' && command.generation <= generation) return this.observation;
      return await this.#start(command, () => undefined);
    });
  }

  async stop(command: StopCommand): Promise<Observation | undefined> {
    this.#starting?.abort(new DroverError('cancelled', 'the sandbox is to be stopped'));
    const graceMs = command.graceMs || this.#record.spec.stopGraceMs;
    this.#grace?.shorten(graceMs);
    return await this.#operations.run(async () => {
      if (this.#isDestroyed) return undefined;
      const { id, phase } = this.#record;
      if (this.#isRunning() || phase === 'starting' || phase === 'stopping') {
        using grace = new StopGrace(graceMs);
        this.#grace = grace;
        await this.#update({ phase: 'stopping', generation: command.generation });
        await endWithin(this.#backend, id, grace, this.#host.signal).finally(() => (this.#grace = undefined));
        await this.#recordEnd(await this.#backend.inspect(id), 'stopped');
        return this.observation;
      }
      if (phase === 'preparing') await this.#update({ phase: 'stopped', reason: 'stopped', message: 'stopped before it was made' });
      return await this.#acknowledge(command);
    });
  }

  async pause(command: SandboxCommand): Promise<Observation> {
    return await this.#switch(command, 'running', 'paused', async (id) => await this.#backend.pause(id));
  }

  async resume(command: SandboxCommand): Promise<Observation> {
    return await this.#switch(command, 'paused', 'running', async (id) => await this.#backend.resume(id));
  }

  async setClosure(command: SandboxCommand & NetworkClosure): Promise<Observation> {
    const { id } = this.#record;
    this.#requested = newerClosure(this.#requested, command);
    // I-4: a cut does not wait for an operation under way, such as a stop with a long grace. A failure here is repeated and reported below.
    // A sandbox that is being started and has no network yet is started with the cut.
    if (this.#operations.waiting > 0 && this.#hasNetwork()) {
      if (command.networkCut) await this.#backend.setCut(id, true).catch(() => undefined);
      if (command.registrationClosed) await this.#backend.setRegistrationClosed(id, true).catch(() => undefined);
    }
    return await this.#exclusively(async () => {
      const closure = closureOf(this.#requested);
      // In force before it is reported. A sandbox without a network is cut at its next start.
      if (this.#hasNetwork()) await setClosure(this.#backend, id, closure);
      if (isSameClosure(this.#record, closure)) return await this.#acknowledge(command);
      await this.#update({ ...closure, generation: command.generation });
      return this.observation;
    });
  }

  async applyPolicy(policy: Policy): Promise<void> {
    await this.#operations.run(async () => await this.#backend.applyPolicy(this.#record.id, policy));
  }

  async destroy(): Promise<void> {
    const { id } = this.#record;
    this.#starting?.abort(new DroverError('cancelled', 'the sandbox is to be destroyed'));
    this.#grace?.shorten(killGraceMs);
    await this.#operations.run(async () => {
      if (this.#isDestroyed) return;
      this.#watch?.abort();
      await this.#backend.destroy(id);
      await removeRunDirectory(this.#host.stateDirectory, id);
      await this.#forget();
    });
  }

  async dial(port: 'init' | number, signal: AbortSignal): Promise<Duplex> {
    // The control plane dials as soon as it learns of a start; the one under way has to finish first.
    if (port === 'init' && this.#starting !== undefined) await this.#operations.run(() => Promise.resolve());
    return this.#connections.add(await this.#backend.dial(this.#record.id, port, signal));
  }

  logs({ tailLines, sinceMs }: LogOptions, signal: AbortSignal): AsyncIterable<LogEntry> {
    return readLog({ directory: this.#runDirectory(), tailLines, sinceMs, signal });
  }

  async *copyOut(source: CopySource, signal: AbortSignal): AsyncGenerator<CopyPart> {
    const { id, spec } = this.#record;
    const root = await this.#backend.stoppedRoot(id);
    if (root === undefined) {
      throw new DroverError('failed-precondition', 'the files of this sandbox are not available on its host', {
        hint: 'start it and copy then: it runs, never ran, or its host was restarted since it ended',
      });
    }
    yield* copyEnded(root, spec.workdir === '' ? '/' : spec.workdir, source, signal);
  }

  /** Undefined when it does not run. */
  async stats(): Promise<SandboxStats | undefined> {
    const { id } = this.#record;
    const usage = this.#isRunning() ? await this.#backend.stats(id) : undefined;
    return usage === undefined ? undefined : { ...usage, id, at: this.#host.clock.now() };
  }

  /** Brings the record that an earlier agent left in line with what exists. */
  async adopt(): Promise<void> {
    await this.#operations.run(async () => await this.#adopt());
  }

  /** Stops watching, and waits for the operations under way. */
  async close(): Promise<void> {
    this.#watch?.abort();
    await this.#operations.idle();
  }

  /** Runs one start of the sandbox. A failure leaves nothing of it, and the record has its reason. */
  async #start({ generation, secrets }: StartCommand, onProgress: Progress): Promise<Observation> {
    const starting = new AbortController();
    this.#starting = starting;
    const signal = AbortSignal.any([this.#host.signal, starting.signal]);
    const { id, spec, startCount: earlier } = this.#record;
    try {
      await this.#update({
        phase: 'preparing',
        generation,
        reason: '',
        message: `preparing the image ${spec.message.image}`,
        exitCode: undefined,
        exitSignal: '',
        outOfMemory: false,
        oomKills: 0,
        finishedAt: undefined,
        bootId: this.#host.bootId,
        ...closureOf(this.#requested),
      });
      const opening = async (prepared: { imageDigest: string; address: string }): Promise<void> => {
        let closure = closureOf(this.#record);
        // I-4: a request during the preparation is in force before anything runs in the sandbox.
        while (!isSameClosure(closure, this.#requested)) {
          closure = closureOf(this.#requested);
          await setClosure(this.#backend, id, closure);
        }
        // The record has the address from here on, so `setClosure` carries out a later cut itself. R-9: a sandbox on record as `preparing`
        // has run nothing.
        await this.#update({ phase: 'starting', message: '', ...prepared, ...closure });
      };
      const request = await requestStart(this.#host, this.#backend, this.#record, secrets, this.#showProgress(onProgress), opening, signal);
      await (earlier === 0 ? this.#backend.create(request, signal) : this.#backend.start(request, signal));
      const state = await this.#backend.inspect(id);
      await this.#update({ phase: 'running', startCount: earlier + 1, startedAt: state?.startedAt ?? this.#host.clock.now() });
      this.#watchRun();
      return this.observation;
    } catch (thrown) {
      const known = DroverError.from(signal.aborted ? (signal.reason ?? thrown) : thrown, 'runtime-failed');
      const isHostDisk = known.code === 'disk-full' && thrown !== known;
      const error = isHostDisk ? await hostDiskFull(this.#host.stateDirectory, 'the sandbox cannot be started', thrown) : known;
      const isCancelled = signal.aborted;
      starting.abort(error);
      await this.#removeStart(earlier === 0);
      const why = { reason: error.code, message: error.message, hint: error.hint ?? '', address: '' };
      // L-22: a transient error does not fail the sandbox. It is still to be made, and the control plane decides how often that is tried.
      if (isCancelled || isTransient(error)) await this.#update({ ...why, phase: 'preparing' });
      else await this.#update({ ...why, phase: 'failed', finishedAt: this.#host.clock.now() });
      throw error;
    } finally {
      this.#starting = undefined;
    }
  }

  /** Shows the progress of the image in the sandbox's message too, at a bounded rate: `drover run` and `sandbox get` print it. */
  #showProgress(onProgress: Progress): Progress {
    const { clock, logger } = this.#host;
    let shownAt = clock.now();
    return (progress) => {
      onProgress(progress);
      const { message, doneLayers, totalLayers, doneBytes, totalBytes } = progress;
      if (this.#record.phase !== 'preparing' || totalLayers === 0 || clock.now() - shownAt < pullMessageMs) return;
      shownAt = clock.now();
      const text = `${message}: ${doneLayers} of ${totalLayers} layers, ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`;
      this.#update({ message: text }).catch((error: unknown) => {
        // The next one follows.
        logger.debug({ err: error, sandbox: this.#record.id }, 'the progress of an image could not be recorded');
      });
    };
  }

  /** Removes what a failed or interrupted start left. Of a later start the root stays for the next try. */
  async #removeStart(isFirst: boolean): Promise<void> {
    const { id } = this.#record;
    const steps: readonly (() => Promise<void>)[] = isFirst
      ? [() => this.#backend.destroy(id), () => removeRunDirectory(this.#host.stateDirectory, id)]
      : [() => this.#backend.release(id), () => removeStartMaterial(this.#runDirectory())];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        // The failure of the start is reported. The next start, sweep or destroy removes the remains.
        this.#host.logger.error({ err: error, sandbox: id }, 'cleaning up after a failed start');
      }
    }
  }

  #watchRun(): void {
    const watch = new AbortController();
    this.#watch = watch;
    const { id, startCount } = this.#record;
    const signal = AbortSignal.any([this.#host.signal, watch.signal]);
    const log = (error: unknown, what: string): void => {
      if (!signal.aborted) this.#host.logger.error({ err: error, sandbox: id }, what);
    };
    this.#recordExit(startCount, signal).catch((error: unknown) => log(error, 'waiting for the end of a sandbox'));
    const resources = {
      host: this.#host,
      backend: this.#backend,
      record: () => this.#record,
      update: async (change: Partial<SandboxRecord>) => await this.#update(change),
      exclusively: async (task: () => Promise<void>) =>
        await this.#operations.run(async () => {
          if (!signal.aborted && this.#record.startCount === startCount) await task();
        }),
    };
    watchResources(resources, signal).catch((error: unknown) => log(error, 'watching the resources of a sandbox'));
  }

  async #recordExit(startCount: number, signal: AbortSignal): Promise<void> {
    const { id } = this.#record;
    await this.#backend.waitExit(id, signal);
    await this.#operations.run(async () => {
      if (this.#isDestroyed || this.#record.startCount !== startCount || !this.#isRunning()) return;
      await this.#recordEnd(await this.#backend.inspect(id), 'exited');
    });
  }

  async #recordEnd(state: SandboxState | undefined, why: Parameters<typeof endOf>[2]): Promise<void> {
    const { id, spec, networkCut } = this.#record;
    const { clock, logger } = this.#host;
    this.#watch?.abort();
    await reportOomKills(this.#host, this.#backend, this.#record)
      .then(async (change) => change !== undefined && (await this.#update(change)))
      .catch((error: unknown) => logger.warn({ err: error, sandbox: id }, 'out-of-memory kills of an ended sandbox could not be reported'));
    // Bytes that its processes had written are still under way, and would be lost with the interface.
    if (!networkCut) await this.#connections.readToEnd();
    await this.#backend.release(id);
    // init reads and removes the secrets. An init that was killed earlier has left them.
    await removeStartMaterial(this.#runDirectory());
    await this.#update({ ...endOf(spec, state, why), finishedAt: state?.finishedAt ?? clock.now(), address: '' });
  }

  async #switch(
    command: SandboxCommand,
    from: 'running' | 'paused',
    to: 'running' | 'paused',
    act: (id: SandboxId) => Promise<void>,
  ): Promise<Observation> {
    return await this.#exclusively(async () => {
      const { phase, id, name } = this.#record;
      if (phase === to) return await this.#acknowledge(command);
      if (phase !== from) {
        throw new DroverError('sandbox-not-running', `the sandbox ${name} is ${phase}, not ${from}`, {
          hint: `see drover sandbox get ${name}`,
        });
      }
      await act(id);
      await this.#update({ phase: to, generation: command.generation });
      return this.observation;
    });
  }

  async #adopt(): Promise<void> {
    const { id, phase, startCount, bootId, spec } = this.#record;
    const { logger } = this.#host;
    if (phase === 'preparing') {
      // The gate of this start's init was not opened. The start is removed, and the control plane requests it again.
      await this.#removeStart(startCount === 0);
      if (startCount === 0) await this.#forget();
      return;
    }
    const state = await this.#backend.inspect(id);
    if (state !== undefined && state.phase !== 'ended') {
      // `starting`: the agent was killed between the start and its record.
      const counted = phase === 'starting' ? startCount + 1 : startCount;
      await this.#update({ phase: state.phase, startCount: counted, startedAt: state.startedAt ?? this.#record.startedAt });
      const log = (what: string) => (error: unknown) => logger.error({ sandbox: id, err: String(error) }, what);
      await setClosure(this.#backend, id, this.#record).catch(log('the network cut of an adopted sandbox could not be set'));
      // Without the gateway nothing leaves the sandbox; the gateway receives the table when it is up.
      await this.#backend.applyPolicy(id, spec.policy).catch(log('the policy of an adopted sandbox is not in force yet'));
      this.#watchRun();
      logger.info({ sandbox: id, phase: state.phase }, 'adopted');
      return;
    }
    if (phase === 'stopped' || phase === 'failed') return;
    if (state === undefined && startCount === 0) {
      // It was never made. What was begun is removed, and the control plane requests it again.
      await this.#removeStart(true);
      await this.#forget();
      return;
    }
    if (phase === 'starting' && startCount === 0) await this.#update({ startCount: 1 });
    const hasRestarted = bootId !== '' && bootId !== this.#host.bootId;
    await this.#recordEnd(state, phase === 'stopping' ? 'stopped' : hasRestarted ? 'host-restarted' : 'exited');
  }

  async #forget(): Promise<void> {
    await this.#host.records.delete(this.#record.id);
    this.#isDestroyed = true;
    this.#host.removed(this.#record.id);
  }

  /** Notes a generation that requests the present state. */
  async #acknowledge({ generation }: SandboxCommand): Promise<Observation> {
    if (generation > this.#record.generation) await this.#update({ generation });
    return this.observation;
  }

  async #update(change: Partial<SandboxRecord>): Promise<void> {
    const generation = Math.max(this.#record.generation, change.generation ?? 0);
    // The clock makes it rise over restarts of the agent too, without the last value being read back.
    const sequence = Math.max(this.#record.sequence + 1, this.#host.clock.now() * 1000);
    // A hint belongs to its message.
    const hint = change.message === undefined ? this.#record.hint : (change.hint ?? '');
    this.#record = { ...this.#record, ...change, hint, generation, sequence };
    await this.#host.records.put(this.#record);
    this.#host.observed(this.observation);
  }

  /** An operation that waited behind a destroy fails. */
  async #exclusively<T>(task: () => Promise<T>): Promise<T> {
    return await this.#operations.run(async () => {
      if (!this.#isDestroyed) return await task();
      throw new DroverError('sandbox-not-found', `the sandbox ${this.#record.id} was destroyed in the meantime`);
    });
  }

  #isRunning(): boolean {
    return this.#record.phase === 'running' || this.#record.phase === 'paused';
  }

  #hasNetwork(): boolean {
    return this.#record.address !== '';
  }

  #runDirectory(): string {
    return runDirectoryOf(this.#host.stateDirectory, this.#record.id);
  }
}

/** Whether the same start may succeed later. A registry has been tried often enough by then. */
function isTransient(error: DroverError): boolean {
  return error.transient && error.code !== 'registry-unreachable';
}
