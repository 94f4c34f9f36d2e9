import { duplexPair, type Duplex } from 'node:stream';
import { DroverError, systemClock, type Clock, type SandboxId } from '@drover/foundation';
import type { Exhausted, CreateRequest, Runtime, RuntimeFinding, RuntimeState, RuntimeStats } from '../runtime.ts';

export type FakeOperation = 'create' | 'start' | 'kill' | 'pause' | 'resume' | 'destroy' | 'dial';

/** How a simulated sandbox ended. */
export interface FakeOutcome {
  readonly exitCode: number;
  readonly exitSignal?: string;
  readonly outOfMemory?: boolean;
  readonly startFailure?: string;
  readonly idle?: boolean;
}

export interface FakeRuntimeOptions {
  /** What there is in this world: give the same to another runtime, and it is the agent after a restart. */
  readonly state?: FakeState;
  readonly clock?: Clock;
  /** How long operations take. Milliseconds; 0 for those not named. */
  readonly latencyMs?: Partial<Record<FakeOperation, number>>;
  /** An error to fail with, before anything was done. */
  readonly fail?: (operation: FakeOperation, id: SandboxId) => DroverError | undefined;
  /** Another end for connections into the sandbox; without it, an echo that says `bye` when the other side has ended. */
  readonly connect?: (id: SandboxId, port: 'init' | number, runDirectory: string) => Duplex | Promise<Duplex>;
  /** Called at each start: what the workload does. It ends the sandbox through `finish`; without it, the sandbox runs until it is killed. */
  readonly behave?: (request: CreateRequest, finish: (outcome: FakeOutcome) => void) => void;
  /** What the workload uses, for stats. */
  readonly usage?: (request: CreateRequest, runningMs: number) => RuntimeStats;
}

interface FakeSandbox {
  readonly request: CreateRequest;
  readonly pid: number;
  readonly startedAt: number;
  phase: 'running' | 'paused' | 'ended';
  outcome: FakeOutcome | undefined;
  finishedAt: number | undefined;
  readonly waiters: Set<() => void>;
  readonly connections: Set<Duplex>;
}

/** The simulated host: sandboxes live here, not in the runtime, as real ones live in the kernel. */
export class FakeState {
  readonly sandboxes = new Map<SandboxId, FakeSandbox>();
  nextPid = 1000;
}

/** Sandboxes in memory: for tests, and for fleets that no machine could hold. */
export class FakeRuntime implements Runtime {
  readonly name = 'fake';
  readonly standBy = undefined;
  readonly #options: FakeRuntimeOptions;
  readonly #state: FakeState;
  readonly #clock: Clock;
  /** Creates and starts under way: a second one of the same sandbox joins the first. */
  readonly #pending = new Map<SandboxId, Promise<void>>();

  constructor(options: FakeRuntimeOptions = {}) {
    this.#options = options;
    this.#state = options.state ?? new FakeState();
    this.#clock = options.clock ?? systemClock;
  }

  check(): Promise<readonly RuntimeFinding[]> {
    return Promise.resolve([]);
  }

  async create(request: CreateRequest, signal: AbortSignal): Promise<void> {
    await this.#once(request.id, async () => {
      if (this.#state.sandboxes.has(request.id)) return;
      await this.#perform('create', request.id, signal);
      await request.gate?.completed;
      await request.gate?.opening();
      this.#launch(request);
    });
  }

  async start(request: CreateRequest, signal: AbortSignal): Promise<void> {
    await this.#once(request.id, async () => {
      if (this.#must(request.id).phase !== 'ended') return;
      await this.#perform('start', request.id, signal);
      await request.gate?.completed;
      await request.gate?.opening();
      this.#launch(request);
    });
  }

  async kill(id: SandboxId, signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await this.#perform('kill', id);
    this.finish(id, { exitCode: signal === 'SIGTERM' ? 143 : 137 });
  }

  async pause(id: SandboxId): Promise<void> {
    await this.#perform('pause', id);
    this.#mustRun(id).phase = 'paused';
  }

  async resume(id: SandboxId): Promise<void> {
    await this.#perform('resume', id);
    this.#mustRun(id).phase = 'running';
  }

  inspect(id: SandboxId): Promise<RuntimeState | undefined> {
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

  list(): Promise<readonly SandboxId[]> {
    return Promise.resolve([...this.#state.sandboxes.keys()]);
  }

  async destroy(id: SandboxId): Promise<void> {
    // What is being made is made first, then removed.
    await this.#pending.get(id)?.catch(() => undefined);
    await this.#perform('destroy', id);
    this.finish(id, { exitCode: 137 });
    this.#state.sandboxes.delete(id);
  }

  async sweep(known: ReadonlySet<SandboxId>): Promise<readonly string[]> {
    const swept = [...this.#state.sandboxes.keys()].filter((id) => !known.has(id));
    for (const id of swept) await this.destroy(id);
    return swept;
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

  stats(id: SandboxId): Promise<RuntimeStats | undefined> {
    const found = this.#state.sandboxes.get(id);
    if (found === undefined || found.phase === 'ended') return Promise.resolve(undefined);
    const runningMs = this.#clock.now() - found.startedAt;
    return Promise.resolve(this.#options.usage?.(found.request, runningMs) ?? { cpuUsec: 0, memoryBytes: 0, pids: 1 });
  }

  /** Ends a sandbox, as its init would; not running: nothing. */
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

  #launch(request: CreateRequest): void {
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
    this.#state.sandboxes.set(request.id, sandbox);
    // Bound to this start: what an earlier one's workload says later does not concern it.
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

function echo(): Duplex {
  const [near, far] = duplexPair();
  far.on('data', (data: Uint8Array) => far.write(data));
  far.on('end', () => far.end('bye'));
  // The near side's reader is told; here there is nothing to do.
  far.on('error', () => undefined);
  near.once('close', () => far.destroy());
  return near;
}
