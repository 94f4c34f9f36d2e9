import { spawn, type ChildProcess, type StdioOptions } from 'node:child_process';
import { systemClock, type Clock, type Logger } from '@drover/foundation';
import { limits } from './limits.ts';
import {
  decide,
  defaultRestartPolicy,
  initialState,
  isAlive,
  type Action,
  type Announcement,
  type Exit,
  type MachineEvent,
  type MachineState,
  type Phase,
  type RestartPolicy,
} from './machine.ts';
import { logLines } from './output.ts';

export interface ProcessSpec {
  /** Unique within its supervisor; in every log line. */
  readonly name: string;
  /** Program and arguments; no shell. */
  readonly argv: readonly [string, ...string[]];
  /** The whole environment: nothing is inherited (G-11). A restarted process also has `lastEndVariable`. */
  readonly env: Readonly<Record<string, string>>;
  readonly cwd?: string;
  readonly uid?: number;
  readonly gid?: number;
  /** Descriptors from 3 on that the process inherits, sockets handed over for instance (G-9). */
  readonly inherit?: readonly number[];
  /** Resolves when the process answers, rejects when it does not. None: it is ready once it runs. */
  readonly probe?: (signal: AbortSignal) => Promise<void>;
  readonly probeEveryMs?: number;
  /** Takes its output, line by line, instead of the log; for programs whose lines are log entries already. */
  readonly onLine?: (line: string, pid: number) => void;
  readonly policy?: Partial<RestartPolicy>;
}

export interface ProcessStatus {
  readonly name: string;
  readonly state: Phase;
  /** 0 when there is none. */
  readonly pid: number;
  readonly restarts: number;
  /** Milliseconds since the epoch. */
  readonly lastHealthy: number | undefined;
  readonly lastError: string | undefined;
  readonly lastExit: Exit | undefined;
}

export interface SupervisedProcessOptions {
  readonly logger: Logger;
  readonly clock?: Clock;
  /** The process's lifetime: aborted, it is stopped. */
  readonly signal?: AbortSignal;
  /** Called after each change of state, with what was announced along with it. */
  readonly onChange?: (status: ProcessStatus, announced: Announcement | undefined) => void;
}

/**
 * One process under supervision (S-6): started in a process group of its own, probed, restarted when it dies, stopped with
 * everything it started. What to do is decided by `machine.ts`; this class only does it.
 */
export class SupervisedProcess {
  readonly spec: ProcessSpec;
  readonly #policy: RestartPolicy;
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #onChange: NonNullable<SupervisedProcessOptions['onChange']>;
  #state: MachineState = initialState;
  #child: ChildProcess | undefined;
  #lastEnd: string | undefined;
  #wake: AbortController | undefined;
  #probing: AbortController | undefined;
  #letGo = false;
  readonly #waiters = new Set<() => void>();

  constructor(spec: ProcessSpec, options: SupervisedProcessOptions) {
    this.spec = spec;
    this.#policy = { ...defaultRestartPolicy, ...spec.policy };
    this.#logger = options.logger;
    this.#clock = options.clock ?? systemClock;
    this.#onChange = options.onChange ?? (() => undefined);
    options.signal?.addEventListener('abort', () => this.#handle({ type: 'stop' }), { once: true });
  }

  status(): ProcessStatus {
    const { phase, pid, restarts, lastHealthy, lastError, lastExit } = this.#state;
    return { name: this.spec.name, state: phase, pid: pid ?? 0, restarts, lastHealthy, lastError, lastExit };
  }

  /** Wants it up. Up already, or on its way: nothing. */
  start(): void {
    this.#handle({ type: 'start' });
  }

  /** Ends it and lets it come up again; in a backoff or an open circuit, tries at once. Not started: nothing. */
  restart(): void {
    this.#handle({ type: 'restart' });
  }

  /** Wants it down: SIGTERM to its group, SIGKILL after its grace. Resolves when it is gone. Let go of: nothing. */
  async stop(): Promise<void> {
    if (this.#letGo) return;
    this.#handle({ type: 'stop' });
    await this.waitFor('stopped');
  }

  /** Resolves when it is in one of the phases. Rejects with the signal's reason when that comes first. */
  async waitFor(phases: Phase | readonly Phase[], signal?: AbortSignal): Promise<void> {
    const wanted = typeof phases === 'string' ? [phases] : phases;
    while (!wanted.includes(this.#state.phase)) {
      signal?.throwIfAborted();
      await new Promise<void>((resolve) => {
        const done = (): void => {
          signal?.removeEventListener('abort', done);
          this.#waiters.delete(done);
          resolve();
        };
        this.#waiters.add(done);
        signal?.addEventListener('abort', done, { once: true });
      });
    }
  }

  /**
   * Lets go of it without ending it: it is watched, restarted and stopped no more, and nothing of it keeps this process
   * alive. Its output has no reader from now on.
   */
  letGo(): void {
    this.#letGo = true;
    this.#armWake(undefined);
    this.#probing?.abort();
    this.#child?.unref();
    this.#child?.stdout?.destroy();
    this.#child?.stderr?.destroy();
  }

  #handle(event: MachineEvent): void {
    if (this.#letGo) return;
    const before = this.#state;
    const { state, actions } = decide(before, event, this.#clock.now(), this.#policy);
    this.#state = state;
    if (state.wakeAt !== before.wakeAt) this.#armWake(state.wakeAt);
    const announced = actions.flatMap((a) => (a.type === 'announce' ? [a.what] : []));
    for (const what of announced) this.#announce(what);
    if (state.phase !== before.phase || announced.length > 0) {
      for (const what of announced.length > 0 ? announced : [undefined]) this.#onChange(this.status(), what);
      for (const waiter of this.#waiters) waiter();
    }
    for (const action of actions) this.#act(action);
    if (!isAlive(this.#state)) this.#probing?.abort();
  }

  #act(action: Action): void {
    switch (action.type) {
      case 'spawn':
        this.#spawn();
        break;
      case 'signal':
        signalGroup(this.#child?.pid, action.signal);
        break;
      case 'announce':
        break;
    }
  }

  #announce(what: Announcement): void {
    const { name, state, pid, restarts, lastError, lastExit } = this.status();
    const fields = { process: name, childPid: pid, state, restarts, ...(lastError && { lastError }), ...(lastExit && { lastExit }) };
    if (what === 'running' || what === 'stopped' || what === 'circuit-closed') this.#logger.info(fields, `${name}: ${what}`);
    else this.#logger.warn(fields, `${name}: ${what}`);
  }

  #spawn(): void {
    const { argv, env, cwd, uid, gid, inherit = [] } = this.spec;
    const [program, ...args] = argv;
    const stdio: StdioOptions = ['ignore', 'pipe', 'pipe', ...inherit];
    let child: ChildProcess;
    try {
      // detached: a session and process group of its own, so that signals reach what it starts and ours do not reach it.
      child = spawn(program, args, {
        env: this.#lastEnd === undefined ? env : { ...env, [lastEndVariable]: this.#lastEnd },
        stdio,
        detached: true,
        ...(cwd && { cwd }),
        ...(uid !== undefined && { uid }),
        ...(gid !== undefined && { gid }),
      });
    } catch (error) {
      this.#handle({ type: 'spawn-failed', error: String(error) });
      return;
    }
    const { pid } = child;
    if (pid === undefined) {
      child.once('error', (error) => this.#handle({ type: 'spawn-failed', error: error.message }));
      return;
    }
    child.on('error', (error) => this.#logger.warn({ process: this.spec.name, err: error.message }, 'the process cannot be signalled'));
    this.#child = child;
    this.#readOutput(child, pid);
    child.once('exit', (code, signal) => {
      // What it started does not outlive it.
      if (!this.#letGo) signalGroup(pid, 'SIGKILL');
      this.#child = undefined;
      this.#lastEnd = signal ?? String(code);
      void this.#closeOutput(child);
      this.#handle({ type: 'exited', code, signal });
    });
    this.#handle({ type: 'spawned', pid });
    void this.#probe();
  }

  #readOutput(child: ChildProcess, pid: number): void {
    const { name, onLine } = this.spec;
    for (const stream of ['stdout', 'stderr'] as const) {
      const fields = { process: name, childPid: pid, stream };
      const write =
        onLine === undefined ? (line: string): void => this.#logger.info(fields, line) : (line: string): void => onLine(line, pid);
      const source = child[stream];
      if (source === null) continue;
      logLines(source, write, (lines) => this.#logger.warn({ ...fields, lines }, 'output left out: too much in a second'));
    }
  }

  async #closeOutput(child: ChildProcess): Promise<void> {
    await systemClock.sleep(limits.outputDrainMs);
    child.stdout?.destroy();
    child.stderr?.destroy();
  }

  #armWake(at: number | undefined): void {
    this.#wake?.abort();
    this.#wake = undefined;
    if (at === undefined) return;
    const wake = new AbortController();
    this.#wake = wake;
    this.#clock.sleep(Math.max(0, at - this.#clock.now()), wake.signal).then(
      // A timer may fire a moment before the clock says so; a wake that comes too early would be the last one.
      () => (this.#clock.now() < at ? this.#armWake(at) : this.#handle({ type: 'woken' })),
      // Aborted: the machine wants to be woken at another time, or not at all.
      () => undefined,
    );
  }

  async #probe(): Promise<void> {
    this.#probing?.abort();
    const { probe, probeEveryMs = limits.probeEveryMs } = this.spec;
    if (probe === undefined) {
      this.#handle({ type: 'probe-passed' });
      return;
    }
    const life = new AbortController();
    this.#probing = life;
    // Until it is ready, it is asked more often, since somebody waits for it; failures count at the usual pace.
    let eager = Math.min(50, probeEveryMs);
    let countedAt = Number.NEGATIVE_INFINITY;
    while (!life.signal.aborted) {
      let event: MachineEvent | undefined = { type: 'probe-passed' };
      try {
        await probe(AbortSignal.any([life.signal, AbortSignal.timeout(limits.probeTimeoutMs)]));
      } catch (error) {
        const counts = this.#state.phase !== 'starting' || this.#clock.now() - countedAt >= probeEveryMs;
        event = counts ? { type: 'probe-failed', error: error instanceof Error ? error.message : String(error) } : undefined;
        if (counts) countedAt = this.#clock.now();
      }
      if (life.signal.aborted) return;
      if (event !== undefined) this.#handle(event);
      const pause = this.#state.phase === 'starting' ? eager : probeEveryMs;
      eager = Math.min(probeEveryMs, 200, eager * 2);
      try {
        await this.#clock.sleep(pause, life.signal);
      } catch {
        return;
      }
    }
  }
}

/** How the process before this one ended: the name of the signal, or the exit status. Any service manager may set it. */
export const lastEndVariable = 'DROVER_LAST_END';

/** Signals a whole process group; one that is gone has nothing to be signalled. */
function signalGroup(pid: number | undefined, signal: 'SIGTERM' | 'SIGKILL'): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, signal);
  } catch {
    // ESRCH: everybody has ended already.
  }
}
