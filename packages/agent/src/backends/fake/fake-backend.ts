import { duplexPair, type Duplex } from 'node:stream';
import { DroverError, systemClock, type Clock, type SandboxId } from '@drover/foundation';
import type { Policy } from '@drover/spec/policy';
import type { Finding } from '../../finding.ts';
import { startCompleting } from '../completion.ts';
import { killedExitCode, type Backend, type Exhausted, type SandboxState, type SandboxUsage, type StartRequest } from '../backend.ts';

export type FakeOperation =
  | 'create'
  | 'start'
  | 'kill'
  | 'pause'
  | 'resume'
  | 'destroy'
  | 'dial'
  | 'applyPolicy'
  | 'setCut'
  | 'setRegistrationClosed';

/** How a simulated sandbox ended. */
export interface FakeOutcome {
  readonly exitCode: number;
  readonly exitSignal?: string;
  readonly outOfMemory?: boolean;
  readonly startFailure?: string;
  readonly idle?: boolean;
}

export interface FakeBackendOptions {
  /** The simulated host: another backend with the same state is the agent after a restart. */
  readonly state?: FakeState;
  readonly clock?: Clock;
  /** How long operations take. Milliseconds; 0 for those not named. */
  readonly latencyMs?: Partial<Record<FakeOperation, number>>;
  /** An error to fail with before anything is done. */
  readonly fail?: (operation: FakeOperation, id: SandboxId) => DroverError | undefined;
  /** Waits for the image. Default: it is in the store. */
  readonly pull?: (request: StartRequest, signal: AbortSignal) => Promise<void>;
  /** The far end of a connection into the sandbox. Default: an echo that sends `bye` when the other side has ended. */
  readonly connect?: (id: SandboxId, port: 'init' | number, runDirectory: string) => Duplex | Promise<Duplex>;
  /** The workload: called at each start, and ends the sandbox through `finish`. Default: it runs until it is killed. */
  readonly behave?: (request: StartRequest, finish: (outcome: FakeOutcome) => void) => void;
  /** What the workload uses, for stats. */
  readonly usage?: (request: StartRequest, runningMs: number) => SandboxUsage;
}

interface FakeSandbox {
  readonly request: StartRequest;
  readonly pid: number;
  readonly startedAt: number;
  phase: 'running' | 'paused' | 'ended';
  outcome: FakeOutcome | undefined;
  finishedAt: number | undefined;
  readonly waiters: Set<() => void>;
  readonly connections: Set<Duplex>;
}

export interface FakeNetwork {
  allow: readonly string[];
  cut: boolean;
  registrationClosed: boolean;
}

/** The simulated host: sandboxes live here, not in the backend, as real ones live in the kernel. */
export class FakeState {
  readonly sandboxes = new Map<SandboxId, FakeSandbox>();
  /** Sandboxes with an address. */
  readonly networks = new Map<SandboxId, FakeNetwork>();
  /** Sandboxes whose images are held. */
  readonly images = new Set<SandboxId>();
  nextPid = 1000;
}

/** Sandboxes in memory: for tests, and for fleets that no machine could hold. */
export class FakeBackend implements Backend {
  readonly name = 'fake';
  readonly #options: FakeBackendOptions;
  readonly #state: FakeState;
  readonly #clock: Clock;
  /** Creates and starts under way: a second one of the same sandbox joins the first. */
  readonly #pending = new Map<SandboxId, Promise<void>>();

  constructor(options: FakeBackendOptions = {}) {
    this.#options = options;
    this.#state = options.state ?? new FakeState();
    this.#clock = options.clock ?? systemClock;
  }

  check(): Promise<readonly Finding[]> {
    return Promise.resolve([]);
  }

  open(known: ReadonlySet<SandboxId>): Promise<void> {
    for (const id of this.#state.networks.keys()) if (!known.has(id)) this.#state.networks.delete(id);
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  async create(request: StartRequest, signal: AbortSignal): Promise<void> {
    await this.#once(request.id, async () => {
      if (this.#state.sandboxes.has(request.id)) return;
      try {
        await this.#launch('create', request, signal);
      } catch (error) {
        this.#remove(request.id);
        throw error;
      }
    });
  }

  async start(request: StartRequest, signal: AbortSignal): Promise<void> {
    await this.#once(request.id, async () => {
      if (this.#must(request.id).phase !== 'ended') return;
      try {
        await this.#launch('start', request, signal);
      } catch (error) {
        this.#state.networks.delete(request.id);
        throw error;
      }
    });
  }

  async kill(id: SandboxId, signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await this.#perform('kill', id);
    this.finish(id, { exitCode: signal === 'SIGTERM' ? 143 : killedExitCode });
  }

  async pause(id: SandboxId): Promise<void> {
    await this.#perform('pause', id);
    this.#mustRun(id).phase = 'paused';
  }

  async resume(id: SandboxId): Promise<void> {
    await this.#perform('resume', id);
    this.#mustRun(id).phase = 'running';
  }

  release(id: SandboxId): Promise<void> {
    this.finish(id, { exitCode: killedExitCode });
    this.#state.networks.delete(id);
    return Promise.resolve();
  }

  async destroy(id: SandboxId): Promise<void> {
    // A create under way completes first.
    await this.#pending.get(id)?.catch(() => undefined);
    await this.#perform('destroy', id);
    this.#remove(id);
  }

  async sweep(known: ReadonlySet<SandboxId>): Promise<readonly string[]> {
    const swept = [...this.#state.sandboxes.keys()].filter((id) => !known.has(id));
    for (const id of swept) await this.destroy(id);
    for (const id of this.#state.images) if (!known.has(id)) this.#state.images.delete(id);
    return swept;
  }

  inspect(id: SandboxId): Promise<SandboxState | undefined> {
    const found = this.#state.sandboxes.get(id);
    if (found === undefined) return Promise.resolve(undefined);
    const startFailure = found.outcome?.startFailure;
    return Promise.resolve({
      phase: found.phase,
      pid: found.phase === 'ended' ? undefined : found.pid,
      exitCode: found.outcome?.exitCode,
      exitSignal: found.outcome?.exitSignal ?? '',
      outOfMemory: found.outcome?.outOfMemory ?? false,
      startedAt: found.startedAt,
      finishedAt: found.finishedAt,
      ...(startFailure === undefined ? {} : { startFailure }),
      ...(found.outcome?.idle === true ? { idle: true } : {}),
    });
  }

  async waitExit(id: SandboxId, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const found = this.#state.sandboxes.get(id);
    if (found === undefined || found.phase === 'ended') return;
    await new Promise<void>((resolve, reject) => {
      const done = (): void => {
        signal.removeEventListener('abort', abort);
        resolve();
      };
      const abort = (): void => {
        found.waiters.delete(done);
        reject(signal.reason as Error);
      };
      found.waiters.add(done);
      signal.addEventListener('abort', abort, { once: true });
    });
  }

  async dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex> {
    await this.#perform('dial', id, signal);
    const found = this.#mustRun(id);
    const stream = await (this.#options.connect?.(id, port, found.request.runDirectory) ?? echo());
    found.connections.add(stream);
    stream.once('close', () => found.connections.delete(stream));
    return stream;
  }

  exhausted(): Promise<readonly Exhausted[]> {
    return Promise.resolve([]);
  }

  oomKills(id: SandboxId): Promise<number> {
    return Promise.resolve(this.#state.sandboxes.get(id)?.outcome?.outOfMemory === true ? 1 : 0);
  }

  oomVictims(): Promise<readonly string[]> {
    return Promise.resolve([]);
  }

  stoppedRoot(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  stats(id: SandboxId): Promise<SandboxUsage | undefined> {
    const found = this.#state.sandboxes.get(id);
    if (found === undefined || found.phase === 'ended') return Promise.resolve(undefined);
    const runningMs = this.#clock.now() - found.startedAt;
    return Promise.resolve(this.#options.usage?.(found.request, runningMs) ?? { cpuUsec: 0, memoryBytes: 0, pids: 1 });
  }

  async applyPolicy(id: SandboxId, policy: Policy): Promise<void> {
    await this.#perform('applyPolicy', id);
    this.#network(id).allow = policy.rules.map((rule) => rule.text);
  }

  async setCut(id: SandboxId, cut: boolean): Promise<void> {
    await this.#perform('setCut', id);
    this.#network(id).cut = cut;
  }

  async setRegistrationClosed(id: SandboxId, closed: boolean): Promise<void> {
    await this.#perform('setRegistrationClosed', id);
    this.#network(id).registrationClosed = closed;
  }

  /** Ends a sandbox as its init would. Not running: nothing. */
  finish(id: SandboxId, outcome: FakeOutcome): void {
    const found = this.#state.sandboxes.get(id);
    if (found !== undefined) this.#end(found, outcome);
  }

  #end(found: FakeSandbox, outcome: FakeOutcome): void {
    if (found.phase === 'ended') return;
    found.phase = 'ended';
    found.outcome = outcome;
    found.finishedAt = this.#clock.now();
    for (const connection of found.connections) connection.destroy();
    for (const done of found.waiters) done();
    found.waiters.clear();
  }

  #remove(id: SandboxId): void {
    this.finish(id, { exitCode: killedExitCode });
    this.#state.sandboxes.delete(id);
    this.#state.networks.delete(id);
    this.#state.images.delete(id);
  }

  async #launch(operation: 'create' | 'start', request: StartRequest, signal: AbortSignal): Promise<void> {
    const { id } = request;
    signal.throwIfAborted();
    this.#state.networks.set(id, { allow: [], cut: false, registrationClosed: false });
    await this.#options.pull?.(request, signal);
    this.#state.images.add(id);
    const prepared = { imageDigest: 'sha256:00', imageConfig: fakeImageConfig, addresses: fakeAddresses };
    await startCompleting(request, prepared, signal, async (completed) => {
      await this.#perform(operation, id, signal);
      await completed;
      await request.opening();
    });
    const sandbox: FakeSandbox = {
      request,
      pid: this.#state.nextPid++,
      startedAt: this.#clock.now(),
      phase: 'running',
      outcome: undefined,
      finishedAt: undefined,
      waiters: new Set(),
      connections: new Set(),
    };
    this.#state.sandboxes.set(id, sandbox);
    // Bound to this start: a finish of an earlier start's workload does not end it.
    this.#options.behave?.(request, (outcome) => this.#end(sandbox, outcome));
  }

  async #once(id: SandboxId, task: () => Promise<void>): Promise<void> {
    const earlier = this.#pending.get(id);
    if (earlier !== undefined) return await earlier;
    const made = task().finally(() => this.#pending.delete(id));
    this.#pending.set(id, made);
    return await made;
  }

  async #perform(operation: FakeOperation, id: SandboxId, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const failure = this.#options.fail?.(operation, id);
    if (failure !== undefined) throw failure;
    const ms = this.#options.latencyMs?.[operation] ?? 0;
    if (ms > 0) await this.#clock.sleep(ms, signal);
  }

  #network(id: SandboxId): FakeNetwork {
    const found = this.#state.networks.get(id);
    if (found === undefined) throw new DroverError('sandbox-not-found', `sandbox ${id} has no network on this host`);
    return found;
  }

  #must(id: SandboxId): FakeSandbox {
    const found = this.#state.sandboxes.get(id);
    if (found === undefined) throw new DroverError('sandbox-not-found', `there is no sandbox ${id} on this host`);
    return found;
  }

  #mustRun(id: SandboxId): FakeSandbox {
    const found = this.#must(id);
    if (found.phase === 'ended') throw new DroverError('sandbox-not-running', `the sandbox ${id} is not running`);
    return found;
  }
}

const fakeImageConfig = { entrypoint: [], command: ['/bin/sh'], env: [], workdir: '/', user: '', stopSignal: '' };
const fakeAddresses = { address: '10.0.0.2', gatewayAddress: '10.0.0.1', proxyPort: 3128, controlPort: 9181 };

function echo(): Duplex {
  const [near, far] = duplexPair();
  far.on('data', (data: Uint8Array) => far.write(data));
  far.on('end', () => far.end('bye'));
  // The reader of the near side sees the error; the far side has nothing to do.
  far.on('error', () => undefined);
  near.once('close', () => far.destroy());
  return near;
}
