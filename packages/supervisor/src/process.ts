import { systemClock, type Clock } from '@drover/foundation';
import { followHealth, type Health } from './health.ts';
import {
  canReload,
  decide,
  defaultPolicy,
  initialState,
  isAlive,
  type Action,
  type Announcement,
  type Exit,
  type LifecycleEvent,
  type LifecyclePolicy,
  type LifecycleState,
  type Phase,
} from './lifecycle.ts';

/** A running process, whoever started it. */
export interface Child {
  readonly pid: number;
  /** Settles when the process has ended; never rejects. */
  readonly exited: Promise<Pick<Exit, 'code' | 'signal'>>;
  /** Signals the process and everything that it started. A process that has ended is no error. */
  kill(signal: NodeJS.Signals | number): void;
  /** Lets the process run on without this one: its output has no reader, and it does not keep this process alive. */
  release?(): void;
}

/** What a supervisor needs to know to run a process, or to follow one. */
export interface ProcessSpec {
  /** Unique within its supervisor; in every log line. */
  readonly name: string;
  /** Starts the process. Absent: attach mode, in which another supervisor owns it (S-2). */
  readonly launch?: (lastExit: Exit | undefined) => Promise<Child>;
  /** Absent: the process is ready as soon as it runs. Attach mode requires it. */
  readonly health?: Health;
  readonly policy?: Partial<Omit<LifecyclePolicy, 'mode'>>;
}

export interface ProcessStatus {
  readonly name: string;
  readonly mode: LifecyclePolicy['mode'];
  readonly state: Phase;
  /** 0 when no process exists, and always in attach mode (S-3). */
  readonly pid: number;
  readonly restarts: number;
  /** Milliseconds since the epoch. */
  readonly lastHealthy: number | undefined;
  readonly lastError: string | undefined;
  readonly lastExit: Exit | undefined;
  /** The largest exit code so far (G-10). */
  readonly exitCode: number;
}

export interface SupervisedProcessOptions {
  readonly clock?: Clock;
  /** The lifetime of the process: when it aborts, the process is stopped. */
  readonly signal?: AbortSignal;
  /** Called after each change of state, with the announcement that it makes. */
  readonly onChange?: (status: ProcessStatus, announcement: Announcement | undefined) => void;
}

/** One process under supervision (S-6). `lifecycle.ts` decides, this class executes. */
export class SupervisedProcess {
  readonly spec: ProcessSpec;
  readonly #policy: LifecyclePolicy;
  readonly #clock: Clock;
  readonly #onChange: NonNullable<SupervisedProcessOptions['onChange']>;
  #state: LifecycleState = initialState;
  #child: Child | undefined;
  #wake: AbortController | undefined;
  #probing: AbortController | undefined;
  #released = false;
  readonly #waiters = new Set<() => void>();

  constructor(spec: ProcessSpec, options: SupervisedProcessOptions = {}) {
    this.spec = spec;
    this.#policy = { ...defaultPolicy, ...spec.policy, mode: spec.launch === undefined ? 'attach' : 'launch' };
    this.#clock = options.clock ?? systemClock;
    this.#onChange = options.onChange ?? (() => undefined);
    options.signal?.addEventListener('abort', () => this.#handle({ type: 'stop' }), { once: true });
  }

  status(): ProcessStatus {
    const { phase, pid, restarts, lastHealthy, lastError, lastExit, exitCode } = this.#state;
    const { name } = this.spec;
    return { name, mode: this.#policy.mode, state: phase, pid: pid ?? 0, restarts, lastHealthy, lastError, lastExit, exitCode };
  }

  /** The mode in which the process is started; undefined while it is stopped (S-5). */
  mode(): LifecyclePolicy['mode'] | undefined {
    return this.#state.phase === 'stopped' ? undefined : this.#policy.mode;
  }

  /** Starts the process, or keeps it up. */
  start(): void {
    this.#handle({ type: 'start' });
  }

  /** Replaces the process (G-6). In a backoff or an open circuit it starts immediately. Stopped or attached: nothing. */
  restart(): void {
    this.#handle({ type: 'restart' });
  }

  /** Asks the process to read its configuration again. Returns false when it does not run, or does not support that. */
  reload(): boolean {
    const possible = canReload(this.#state, this.#policy);
    this.#handle({ type: 'reload' });
    return possible;
  }

  /**
   * Ends the process: its stop signal, then SIGKILL after its grace. Resolves when it has exited. An attached or released process runs on.
   * @param graceMs replaces the grace of its policy
   */
  async stop(graceMs?: number): Promise<void> {
    if (this.#released) return;
    this.#handle({ type: 'stop', ...(graceMs !== undefined && { graceMs }) });
    await this.waitFor(['stopped', 'exited']);
  }

  /** Resolves when the process is in one of the phases. Rejects with the signal's reason when that aborts first. */
  async waitFor(phases: Phase | readonly Phase[], signal?: AbortSignal): Promise<void> {
    const awaited = typeof phases === 'string' ? [phases] : phases;
    while (!awaited.includes(this.#state.phase)) {
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

  /** Ends the supervision and lets the process run on. */
  release(): void {
    this.#released = true;
    this.#armWake(undefined);
    this.#probing?.abort();
    this.#child?.release?.();
  }

  #handle(event: LifecycleEvent): void {
    if (this.#released) return;
    const before = this.#state;
    const { state, actions } = decide(before, event, this.#clock.now(), this.#policy);
    this.#state = state;
    if (state.wakeAt !== before.wakeAt) this.#armWake(state.wakeAt);
    const announcements = actions.flatMap((a) => (a.type === 'announce' ? [a.what] : []));
    if (state.phase !== before.phase && announcements.length === 0) this.#onChange(this.status(), undefined);
    for (const what of announcements) this.#onChange(this.status(), what);
    for (const waiter of this.#waiters) waiter();
    for (const action of actions) this.#act(action);
    if (!isAlive(this.#state)) this.#probing?.abort();
  }

  #act(action: Action): void {
    switch (action.type) {
      case 'spawn':
        void this.#spawn();
        break;
      case 'probe':
        void this.#probe();
        break;
      case 'signal':
        this.#child?.kill(action.signal);
        break;
      case 'announce':
        break;
    }
  }

  async #spawn(): Promise<void> {
    let child: Child;
    try {
      child = await (this.spec.launch as NonNullable<ProcessSpec['launch']>)(this.#state.lastExit);
    } catch (error) {
      this.#handle({ type: 'spawn-failed', error: error instanceof Error ? error.message : String(error) });
      return;
    }
    this.#child = child;
    if (this.#released) child.release?.();
    this.#handle({ type: 'spawned', pid: child.pid });
    const exit = await child.exited;
    this.#child = undefined;
    this.#handle({ type: 'exited', ...exit });
  }

  async #probe(): Promise<void> {
    this.#probing?.abort();
    const { health } = this.spec;
    if (health === undefined) {
      this.#handle({ type: 'probe-passed' });
      return;
    }
    const life = new AbortController();
    this.#probing = life;
    await followHealth(
      health,
      {
        clock: this.#clock,
        isReady: () => (this.#state.lastHealthy ?? Number.NEGATIVE_INFINITY) >= (this.#state.startedAt ?? 0),
        report: (result) => this.#handle(result),
      },
      life.signal,
    );
  }

  #armWake(at: number | undefined): void {
    this.#wake?.abort();
    this.#wake = undefined;
    if (at === undefined) return;
    const wake = new AbortController();
    this.#wake = wake;
    this.#clock.sleep(Math.max(0, at - this.#clock.now()), wake.signal).then(
      // A timer may fire a moment early by the clock; the machine would ignore that wake-up, and no other follows.
      () => (this.#clock.now() < at ? this.#armWake(at) : this.#handle({ type: 'woken' })),
      () => undefined,
    );
  }
}
