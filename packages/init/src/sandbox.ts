import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { abortable, DroverError } from '@drover/foundation';
import type { init } from '@drover/protocol';
import { maxStopGraceMs } from '@drover/spec';
import type { ExitRecord, InitConfig } from './config.ts';
import { idleLookMs, IdleWatch, workloadCpuMs, type Activity } from './idle.ts';
import { logFlushMs } from './limits.ts';
import { LogWriter } from './logs/writer.ts';
import { Steps } from './plan/steps.ts';
import { Execs } from './processes/execs.ts';
import { OomKills } from './processes/oom-kills.ts';
import { ManagedProcess, type Exit, type Shared } from './processes/process.ts';
import { ReplayBudget } from './processes/replay.ts';
import type { Spawner } from './processes/spawned.ts';
import { writeSecrets } from './secrets.ts';

export interface SandboxOptions {
  readonly config: InitConfig;
  /** Where log and exit.json go. */
  readonly runDirectory: string;
  readonly bootId: string;
  readonly spawn: Spawner;
}

export type End = Omit<ExitRecord, 'at'> & Exit;

/**
 * What runs in this sandbox: the main process, started once (I-32), the steps before it, and the execs; and how it ends.
 * It knows nothing of gRPC, TLS or being PID 1.
 */
export class Sandbox {
  readonly config: InitConfig;
  readonly bootId: string;
  readonly runDirectory: string;
  readonly execs: Execs;
  readonly steps: Steps;
  readonly log: LogWriter;
  /** Settles when the main process has ended (or failed to start, or was stopped before), its log is on disk and exit.json is written. */
  readonly end: Promise<End>;
  readonly #settle: (end: End) => void;
  readonly #spawn: Spawner;
  readonly #shared: Shared = { replay: new ReplayBudget(), oomKills: new OomKills() };
  #main: ManagedProcess | undefined;
  #starting: Promise<ManagedProcess> | undefined;
  readonly #started: Promise<ManagedProcess>;
  readonly #started_: { resolve: (main: ManagedProcess) => void; reject: (error: unknown) => void };
  #stopping: 'stopped' | 'idle' | undefined;
  #attached = 0;
  #calls = 0;
  /** What kept the secrets from their place; the main process's start says so. */
  readonly #secretsError: unknown;

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
    const end = Promise.withResolvers<End>();
    this.end = end.promise;
    this.#settle = end.resolve;
    const started = Promise.withResolvers<ManagedProcess>();
    this.#started = started.promise;
    this.#started_ = started;
    // Whoever waits for the start gets the failure; nobody needs to.
    this.#started.catch(() => undefined);
    try {
      // before the first step and exec, which read them too, and have the same user.
      writeSecrets(this.config.secrets ?? [], this.config.main.user);
    } catch (error) {
      this.#secretsError = error;
    }
  }

  /** The main process, once started. */
  get main(): ManagedProcess | undefined {
    return this.#main;
  }

  /** The main process, as soon as it is started. @throws {DroverError} what kept it from starting; cancelled */
  async mainProcess(signal: AbortSignal): Promise<ManagedProcess> {
    return await abortable(this.#started, signal);
  }

  /** Starts the main process; repeated, only says that it was (I-32). @throws {DroverError} command-not-found, command-not-executable, … */
  async startMain(): Promise<boolean> {
    if (this.#starting !== undefined) {
      await this.#starting;
      return true;
    }
    if (this.#stopping !== undefined) throw new DroverError('sandbox-not-running', 'the sandbox is stopping');
    this.#starting = this.#start();
    this.#starting.catch(() => undefined);
    await this.#starting;
    return false;
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

  /** Ends the main process: its stop signal, a grace, then SIGKILL (I-37). Repeated: nothing. */
  stop(graceMs: number = this.config.stopGraceMs, reason: 'stopped' | 'idle' = 'stopped'): void {
    if (this.#stopping !== undefined) return;
    this.#stopping = reason;
    // What prepares a sandbox for work that nobody wants any more gets no grace.
    void this.steps.stop();
    const { stopSignal } = this.config.main;
    void (async () => {
      if (this.#starting === undefined) {
        this.#finish({
          code: 143,
          signal: 'SIGTERM',
          at: Date.now(),
          outOfMemory: false,
          reason: 'stopped',
          message: 'stopped before its command was started',
        });
        return;
      }
      const main = await this.#starting;
      main.kill(stopSignal);
      const timer = setTimeout(() => main.kill('SIGKILL'), Math.min(graceMs, maxStopGraceMs));
      await main.finished;
      clearTimeout(timer);
      // A start that failed has ended the sandbox already.
    })().catch(() => undefined);
  }

  /** The exit of the sandbox, or undefined when `signal` aborts first. */
  async ended(signal: AbortSignal): Promise<Exit | undefined> {
    try {
      return await abortable(this.end, signal);
    } catch {
      return undefined;
    }
  }

  async #start(): Promise<ManagedProcess> {
    const { main } = this.config;
    try {
      if (this.#secretsError !== undefined) throw this.#secretsError;
      const spawned = await this.#spawn({
        argv: main.argv,
        env: this.#environment(),
        workdir: main.workdir,
        user: main.user,
        terminal: main.terminal,
        rows: main.rows,
        columns: main.columns,
        stdin: main.stdin,
        makeWorkdir: true,
      });
      this.#main = new ManagedProcess('main', spawned, main.terminal, this.#shared, this.log);
      this.#started_.resolve(this.#main);
      void this.#main.finished.then((exit) => this.#finish({ ...exit, reason: this.#stopping ?? 'main-exited', message: '' }));
      this.#watchIdle(this.#main);
      return this.#main;
    } catch (thrown) {
      const error = DroverError.from(thrown);
      this.#started_.reject(error);
      this.#finish({
        code: error.exitCode,
        signal: '',
        at: Date.now(),
        outOfMemory: false,
        reason: 'start-failed',
        message: error.message,
      });
      throw error;
    }
  }

  /** Runs what somebody does with the sandbox: as long as it lasts, the sandbox is not idle. */
  async attached<T>(work: () => Promise<T>): Promise<T> {
    this.#attached++;
    this.#calls++;
    try {
      return await work();
    } finally {
      this.#attached--;
    }
  }

  /** Init watches by itself: whatever happens to the agent and the control plane, the time goes on. */
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
      if (watch.look(performance.now(), activity())) this.stop(undefined, 'idle');
    }, idleLookMs(idleStopMs));
    void this.end.then(() => clearInterval(timer));
  }

  #environment(): readonly string[] {
    const { hostname, main } = this.config;
    return [...(hostname === '' ? [] : [`HOSTNAME=${hostname}`]), ...main.env];
  }

  #finish(end: End): void {
    void (async () => {
      let timer: NodeJS.Timeout | undefined;
      await Promise.race([this.log.close(), new Promise<void>((resolve) => (timer = setTimeout(resolve, logFlushMs)))]);
      clearTimeout(timer);
      this.#record(end);
      this.#settle(end);
    })();
  }

  /** For the agent, which may not be watching: replaced whole, so that it never reads half of it. */
  #record(end: End): void {
    const { code, signal, at, outOfMemory, reason, message } = end;
    const record: ExitRecord = { code, signal, at, outOfMemory, reason, message };
    const path = join(this.runDirectory, 'exit.json');
    try {
      // The workload may have put something else there, and must not hold its own end up.
      rmSync(`${path}.tmp`, { recursive: true, force: true });
      writeFileSync(`${path}.tmp`, JSON.stringify(record), { mode: 0o600, flag: 'wx' });
      renameSync(`${path}.tmp`, path);
    } catch {
      // A full disk: the agent then has init's own exit status.
    }
  }
}
