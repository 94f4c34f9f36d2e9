import { DroverError, clip } from '@drover/foundation';
import type { init } from '@drover/protocol';
import type { MainProcess } from '../config.ts';
import { endedExecTtlMs, maxOnceSteps, maxRunningSteps, maxStepMs, maxStepNameLength } from '../limits.ts';
import { programOf } from '../own-program.ts';
import { ManagedProcess, type Shared, type Spawner } from '../processes/index.ts';

/** One run of a step. Its lifetime is the sandbox: the session that requested it may end first (I-32). */
export interface Step {
  readonly process: ManagedProcess;
  /** It was killed because it exceeded its time limit. */
  readonly timedOut: boolean;
}

export interface StepDefaults {
  readonly main: Pick<MainProcess, 'workdir' | 'user'>;
  /** The environment of every process of the sandbox; a step's own entries follow it. */
  readonly env: readonly string[];
  /** Runs work during which the sandbox is not idle. */
  readonly attached: <T>(work: () => Promise<T>) => Promise<T>;
}

interface Entry {
  readonly once: boolean;
  readonly started: Promise<Step>;
  ended: boolean;
}

/**
 * The steps of the init plan by name (I-29): those that run, and those of this start that run only once and have ended. A step is never started
 * twice: a request joins its run, or receives its recorded end (I-32).
 */
export class Steps {
  readonly #spawn: Spawner;
  readonly #shared: Shared;
  readonly #defaults: StepDefaults;
  readonly #byName = new Map<string, Entry>();
  readonly #done = new Set<string>();
  #stopped = false;

  constructor(spawn: Spawner, shared: Shared, defaults: StepDefaults) {
    this.#spawn = spawn;
    this.#shared = shared;
    this.#defaults = defaults;
  }

  /** Names of the steps that run once per start and succeeded: HelloAck's `steps_done` (I-32). */
  get done(): readonly string[] {
    return [...this.#done];
  }

  /**
   * Starts the step, or joins the run of that name (`joined`).
   * @throws {DroverError} invalid-argument, no-room, sandbox-not-running, and as resolveCommand
   */
  async run(request: init.RunStep): Promise<{ readonly step: Step; readonly joined: boolean }> {
    const { name } = request;
    const existing = this.#byName.get(name);
    if (existing !== undefined) return { step: await existing.started, joined: true };
    if (this.#stopped) throw new DroverError('sandbox-not-running', 'the sandbox is stopping');
    if (name === '' || name.length > maxStepNameLength) {
      throw new DroverError('invalid-argument', `${JSON.stringify(clip(name))} cannot be the name of a step`);
    }
    const entries = [...this.#byName.values()];
    if (entries.filter((entry) => !entry.ended).length >= maxRunningSteps) {
      throw new DroverError('no-room', `${maxRunningSteps} steps are running in the sandbox already`, { hint: 'wait for one to end' });
    }
    if (request.once && entries.filter((entry) => entry.once).length >= maxOnceSteps) {
      throw new DroverError('no-room', `${maxOnceSteps} steps have run in this start of the sandbox`, { hint: 'start it again' });
    }
    const entry: Entry = { once: request.once, started: this.#start(request), ended: false };
    this.#byName.set(name, entry);
    try {
      const step = await entry.started;
      void this.#settle(name, entry, step);
      return { step, joined: false };
    } catch (error) {
      // Nothing ran: the step may be requested again.
      this.#byName.delete(name);
      throw error;
    }
  }

  /** Kills the running steps; no step starts afterwards. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const { started } of this.#byName.values()) {
      // A step that failed to start has no process.
      await started.then((step) => step.process.kill('SIGKILL')).catch(() => undefined);
    }
  }

  /** Resolves when every step has ended. */
  async settled(): Promise<void> {
    await Promise.allSettled([...this.#byName.values()].map(async ({ started }) => (await started).process.finished));
  }

  async #start(request: init.RunStep): Promise<Step> {
    const { main, env } = this.#defaults;
    const spawned = await this.#spawn({
      ...programOf({ argv: request.argv, env: [...env, ...request.env] }),
      workdir: request.workdir === '' ? main.workdir : request.workdir,
      user: request.user === '' ? main.user : request.user,
      terminal: false,
      rows: 0,
      columns: 0,
      stdin: true,
      // The main process's directory is created for it, and steps run first.
      makeWorkdir: request.workdir === '',
    });
    const process = new ManagedProcess(request.name, spawned, false, this.#shared);
    const step = { process, timedOut: false };
    const timeout = (): void => {
      step.timedOut = true;
      process.kill('SIGKILL');
    };
    const timer = setTimeout(timeout, request.timeoutMs === 0 ? maxStepMs : Math.min(request.timeoutMs, maxStepMs));
    void spawned.exited.finally(() => clearTimeout(timer));
    void this.#defaults.attached(async () => await process.finished);
    // A step need not read all of its input; the end of its process ends the write.
    void process.write(request.stdin, new AbortController().signal).finally(() => spawned.endStdin());
    return step;
  }

  async #settle(name: string, entry: Entry, { process }: Step): Promise<void> {
    const exit = await process.finished;
    entry.ended = true;
    if (!entry.once) this.#byName.delete(name);
    else if (exit.code === 0) this.#done.add(name);
    // The end is kept for the whole start, the output for a limited time.
    setTimeout(() => process.dispose(), endedExecTtlMs).unref();
  }
}
