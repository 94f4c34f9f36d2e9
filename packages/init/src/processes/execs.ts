import { DroverError, clip } from '@drover/foundation';
import { parseExecId } from '@drover/spec';
import { endedExecTtlMs, lingerGraceMs, maxEndedExecs, maxRunningExecs } from '../limits.ts';
import { idleCheckMs, IdleWatch } from './idle.ts';
import { ManagedProcess, type Shared } from './process.ts';
import type { Spawner, SpawnRequest } from './spawned.ts';

/** An exec, as it is listed. */
export interface ExecInfo {
  readonly process: ManagedProcess;
  readonly argv: readonly string[];
  readonly user: string;
  /** Milliseconds since the epoch. */
  readonly startedAt: number;
  readonly linger: Linger;
}

/** The exec processes of this sandbox by id (I-40): running ones, and recently ended ones. */
export class Execs {
  readonly #spawn: Spawner;
  readonly #shared: Shared;
  /** A promise while it starts: a second start with the same id attaches to the first. */
  readonly #byId = new Map<string, Promise<ExecInfo>>();
  readonly #ended: { readonly id: string; readonly at: number }[] = [];

  constructor(spawn: Spawner, shared: Shared) {
    this.#spawn = spawn;
    this.#shared = shared;
  }

  /**
   * Starts an exec, or finds the one that an earlier call with this id started.
   * @param lingerMs how long it may run without a client and without output; 0: without limit
   * @throws {DroverError} no-room, invalid-argument, and as resolveCommand
   */
  async start(id: string, request: SpawnRequest, lingerMs: number): Promise<ManagedProcess> {
    this.#expire();
    const existing = this.#byId.get(id);
    if (existing !== undefined) return (await existing).process;
    if (id === 'main') throw new DroverError('invalid-argument', 'main is the id of the main process');
    parseExecId(id);
    if (this.#byId.size - this.#ended.length >= maxRunningExecs) {
      throw new DroverError('no-room', `${maxRunningExecs} execs are running in the sandbox already`, {
        hint: '`drover exec ls SANDBOX` lists them, `drover exec kill SANDBOX ID` ends one',
      });
    }
    const started = this.#start(id, request, lingerMs);
    this.#byId.set(id, started);
    try {
      return (await started).process;
    } catch (error) {
      this.#byId.delete(id);
      throw error;
    }
  }

  /** @throws {DroverError} exec-not-found */
  async get(id: string): Promise<ManagedProcess> {
    return (await this.#find(id)).process;
  }

  /** @param lingerMs 0: it may run without clients without limit @throws {DroverError} exec-not-found */
  async setLinger(id: string, lingerMs: number): Promise<void> {
    (await this.#find(id)).linger.set(lingerMs);
  }

  /** All execs, in the order of their starts. */
  async list(): Promise<readonly ExecInfo[]> {
    this.#expire();
    const all = await Promise.allSettled(this.#byId.values());
    return all.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  }

  async killAll(): Promise<void> {
    for (const started of this.#byId.values()) {
      // An exec that failed to start has no process.
      await started.then(({ process }) => process.kill('SIGKILL')).catch(() => undefined);
    }
  }

  /** Resolves when every exec has ended. */
  async settled(): Promise<void> {
    await Promise.allSettled([...this.#byId.values()].map(async (started) => (await started).process.finished));
  }

  async #find(id: string): Promise<ExecInfo> {
    this.#expire();
    const found = this.#byId.get(id);
    if (found !== undefined) return await found;
    throw new DroverError('exec-not-found', `the sandbox has no exec ${JSON.stringify(clip(id))}`, {
      hint: 'it may have ended, or the sandbox was started again; `drover exec ls SANDBOX` lists the execs',
    });
  }

  async #start(id: string, request: SpawnRequest, lingerMs: number): Promise<ExecInfo> {
    const process = new ManagedProcess(id, await this.#spawn(request), request.terminal, this.#shared);
    void process.finished.then((exit) => {
      this.#ended.push({ id, at: exit.at });
      this.#expire();
    });
    return { process, argv: request.argv, user: request.user, startedAt: Date.now(), linger: new Linger(process, lingerMs) };
  }

  #expire(): void {
    const before = Date.now() - endedExecTtlMs;
    while (this.#ended.length > maxEndedExecs || (this.#ended[0]?.at ?? Number.POSITIVE_INFINITY) < before) {
      const oldest = this.#ended.shift();
      if (oldest === undefined) return;
      const started = this.#byId.get(oldest.id);
      this.#byId.delete(oldest.id);
      void started?.then(({ process }) => process.dispose());
    }
  }
}

/** Ends a process that has no client and writes no output: by SIGHUP, as a closed terminal does, then by SIGKILL. */
class Linger {
  readonly #process: ManagedProcess;
  #ms = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(process: ManagedProcess, ms: number) {
    this.#process = process;
    this.set(ms);
    void process.finished.then(() => clearTimeout(this.#timer));
  }

  get ms(): number {
    return this.#ms;
  }

  /** @param ms how long it may run so; 0: without limit */
  set(ms: number): void {
    const process = this.#process;
    this.#ms = ms;
    clearTimeout(this.#timer);
    if (ms === 0 || process.exit !== undefined) return;
    const activity = () => ({ attached: process.readers, calls: process.attachments, outputBytes: process.outputEnd, cpuMs: 0 });
    const watch = new IdleWatch(ms, performance.now(), activity());
    this.#timer = setInterval(() => {
      if (!watch.check(performance.now(), activity())) return;
      clearTimeout(this.#timer);
      process.kill('SIGHUP');
      this.#timer = setTimeout(() => process.kill('SIGKILL'), lingerGraceMs);
    }, idleCheckMs(ms));
  }
}
