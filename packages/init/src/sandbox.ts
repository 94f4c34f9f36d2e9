import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { abortable, DroverError, systemClock, withDeadline } from '@drover/foundation';
import type { init } from '@drover/protocol';
import { maxStopGraceMs } from '@drover/spec';
import { SupervisedProcess, type Child } from '@drover/supervisor';
import type { ExitRecord, InitConfig } from './config.ts';
import { logFlushMs } from './limits.ts';
import { LogWriter } from './logs/index.ts';
import { Steps } from './plan/index.ts';
import {
  Execs,
  idleCheckMs,
  IdleWatch,
  ManagedProcess,
  OomKills,
  ReplayBudget,
  workloadCpuMs,
  writeSecrets,
  type Activity,
  type Exit,
  type Shared,
  type Spawner,
  type SpawnRequest,
} from './processes/index.ts';

export interface SandboxOptions {
  readonly config: InitConfig;
  /** The log and exit.json are written there. */
  readonly runDirectory: string;
  readonly bootId: string;
  readonly spawn: Spawner;
}

export type End = Omit<ExitRecord, 'at'> & Exit;

/**
 * The processes of this sandbox: the main process, started once (I-32), the steps before it, and the execs; and how the sandbox ends.
 * Independent of gRPC, of TLS and of being PID 1.
 */
export class Sandbox {
  readonly config: InitConfig;
  readonly bootId: string;
  readonly runDirectory: string;
  readonly execs: Execs;
  readonly steps: Steps;
  readonly log: LogWriter;
  /** Resolves when the main process has ended, failed to start or was stopped before, its log is on disk and exit.json is written. */
  readonly end: Promise<End>;
  readonly #settle: (end: End) => void;
  readonly #spawn: Spawner;
  readonly #shared: Shared = { replay: new ReplayBudget(), oomKills: new OomKills() };
  readonly #supervised: SupervisedProcess;
  readonly #started = Promise.withResolvers<ManagedProcess>();
  #main: ManagedProcess | undefined;
  #startRequested = false;
  #stopReason: 'stopped' | 'idle' | undefined;
  #attached = 0;
  #calls = 0;
  /** Why the secrets could not be written; the start of the main process fails with it. */
  #secretsError: unknown;

  constructor(options: SandboxOptions) {
    this.config = options.config;
    this.bootId = options.bootId;
    this.runDirectory = options.runDirectory;
    this.#spawn = options.spawn;
    this.execs = new Execs(options.spawn, this.#shared);
    this.steps = new Steps(options.spawn, this.#shared, {
      main: this.config.main,
      env: this.#environment(),
      attached: async (work) => await this.attached(work),
    });
    this.log = new LogWriter({ directory: options.runDirectory });
    const { promise, resolve } = Promise.withResolvers<End>();
    this.end = promise;
    this.#settle = resolve;
    const { stopSignal } = this.config.main;
    this.#supervised = new SupervisedProcess({
      name: 'main',
      launch: async () => await this.#launch(),
      policy: { restart: 'never', stopSignal },
    });
    // A failed start is no unhandled rejection when no caller waits for it.
    this.#started.promise.catch(() => undefined);
    try {
      // before the first step and exec, which may read the secrets too, as the same user.
      writeSecrets(this.config.secrets ?? [], this.config.main.user);
    } catch (error) {
      this.#secretsError = error;
    }
  }

  /** The main process, once started. */
  get main(): ManagedProcess | undefined {
    return this.#main;
  }

  /** Resolves with the main process when it has started. @throws {DroverError} the error of its start; cancelled */
  async mainProcess(signal: AbortSignal): Promise<ManagedProcess> {
    return await abortable(this.#started.promise, signal);
  }

  /**
   * Starts the main process. Returns whether an earlier call did (I-32).
   * @throws {DroverError} command-not-found, command-not-executable, …; sandbox-not-running
   */
  async startMain(): Promise<boolean> {
    const repeated = this.#startRequested;
    if (!repeated) {
      if (this.#stopReason !== undefined) throw new DroverError('sandbox-not-running', 'the sandbox is stopping');
      this.#startRequested = true;
      this.#supervised.start();
    }
    await this.#started.promise;
    return repeated;
  }

  async startExec(start: init.ExecStart): Promise<ManagedProcess> {
    const { main } = this.config;
    return await this.execs.start(
      start.execId,
      {
        argv: start.argv,
        env: [...this.#environment(), ...start.env],
        workdir: start.workdir === '' ? main.workdir : start.workdir,
        user: start.user === '' ? main.user : start.user,
        terminal: start.terminal,
        rows: start.size?.rows ?? 0,
        columns: start.size?.columns ?? 0,
        stdin: start.stdin,
        makeWorkdir: false,
      },
      start.lingerMs,
    );
  }

  /** @throws {DroverError} failed-precondition */
  signalMain(signal: number): void {
    if (this.#main === undefined) throw new DroverError('failed-precondition', 'the command of the sandbox has not been started');
    this.#main.kill(signal);
  }

  /** Ends the main process: its stop signal, a grace, then SIGKILL (I-37). Later calls do nothing. */
  stop(graceMs: number = this.config.stopGraceMs, reason: 'stopped' | 'idle' = 'stopped'): void {
    if (this.#stopReason !== undefined) return;
    this.#stopReason = reason;
    // The steps prepare work that is no longer desired: they get no grace.
    void this.steps.stop();
    if (this.#startRequested) void this.#supervised.stop(Math.min(graceMs, maxStopGraceMs));
    else this.#finish({ ...ended, code: 143, signal: 'SIGTERM', reason: 'stopped', message: 'stopped before its command was started' });
  }

  /** Resolves with the exit of the sandbox, or with undefined when `signal` aborts first. */
  async ended(signal: AbortSignal): Promise<Exit | undefined> {
    return await abortable(this.end, signal).catch(() => undefined);
  }

  /** Runs a caller's work in the sandbox, which is not idle meanwhile. */
  async attached<T>(work: () => Promise<T>): Promise<T> {
    this.#attached++;
    this.#calls++;
    try {
      return await work();
    } finally {
      this.#attached--;
    }
  }

  async #launch(): Promise<Child> {
    try {
      if (this.#secretsError !== undefined) throw this.#secretsError;
      const main = new ManagedProcess('main', await this.#spawn(this.#mainRequest()), this.config.main.terminal, this.#shared, this.log);
      this.#main = main;
      this.#started.resolve(main);
      this.#watchIdle(main);
      const exited = main.finished.then((exit) => {
        this.#finish({ ...exit, reason: this.#stopReason ?? 'main-exited', message: '' });
        return exit.signal === '' ? { code: exit.code, signal: null } : { code: null, signal: exit.signal };
      });
      return { pid: main.spawned.pid, exited, kill: (signal) => main.kill(signal) };
    } catch (thrown) {
      const error = DroverError.from(thrown);
      this.#started.reject(error);
      this.#finish({ ...ended, code: error.exitCode, signal: '', reason: 'start-failed', message: error.message });
      throw error;
    }
  }

  #mainRequest(): SpawnRequest {
    const { argv, workdir, user, terminal, rows, columns, stdin } = this.config.main;
    return { argv, env: this.#environment(), workdir, user, terminal, rows, columns, stdin, makeWorkdir: true };
  }

  /** Init watches without the agent and the control plane: their absence does not stop the clock. */
  #watchIdle(main: ManagedProcess): void {
    const { idleStopMs } = this.config;
    if (idleStopMs === undefined) return;
    const activity = (): Activity => ({
      attached: this.#attached,
      calls: this.#calls,
      outputBytes: main.outputEnd,
      cpuMs: workloadCpuMs(),
    });
    const watch = new IdleWatch(idleStopMs, performance.now(), activity());
    const timer = setInterval(() => {
      if (watch.check(performance.now(), activity())) this.stop(undefined, 'idle');
    }, idleCheckMs(idleStopMs));
    void this.end.then(() => clearInterval(timer));
  }

  #environment(): readonly string[] {
    const { hostname, main } = this.config;
    return [...(hostname === '' ? [] : [`HOSTNAME=${hostname}`]), ...main.env];
  }

  #finish(end: Omit<End, 'at'> & Partial<Pick<End, 'at'>>): void {
    void (async () => {
      const at = end.at ?? Date.now();
      // A log that cannot be written must not keep the sandbox from ending.
      await withDeadline(this.log.close(), logFlushMs, systemClock, () => new Error('the log is late')).catch(() => undefined);
      this.#record({ ...end, at });
      this.#settle({ ...end, at });
    })();
  }

  /** For an agent that may not be watching. Replaced as a whole, so that it never reads a half. */
  #record({ code, signal, at, outOfMemory, reason, message }: End): void {
    const record: ExitRecord = { code, signal, at, outOfMemory, reason, message };
    const path = join(this.runDirectory, 'exit.json');
    try {
      // The workload may have put something else there, which must not hold up its own end.
      rmSync(`${path}.tmp`, { recursive: true, force: true });
      writeFileSync(`${path}.tmp`, JSON.stringify(record), { mode: 0o600, flag: 'wx' });
      renameSync(`${path}.tmp`, path);
    } catch {
      // A full disk: the agent then has init's own exit status.
    }
  }
}

/** An end without a main process. */
const ended = { outOfMemory: false } as const;
