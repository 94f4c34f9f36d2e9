import { DroverError, clip } from '@drover/foundation';
import { endedExecTtlMs, maxEndedExecs, maxExecIdLength, maxRunningExecs } from '../limits.ts';
import { ManagedProcess } from './process.ts';
import type { ReplayBudget } from './replay.ts';
import type { Spawner, SpawnRequest } from './spawned.ts';

/** The exec processes of this sandbox by id (I-40): running ones, and for a while those that have ended. */
export class Execs {
  readonly #spawn: Spawner;
  readonly #budget: ReplayBudget;
  /** A promise while it starts: a second start with the same id attaches to the first. */
  readonly #byId = new Map<string, Promise<ManagedProcess>>();
  readonly #ended: { readonly id: string; readonly at: number }[] = [];

  constructor(spawn: Spawner, budget: ReplayBudget) {
    this.#spawn = spawn;
    this.#budget = budget;
  }

  /** Starts, or finds what an earlier start with this id started. @throws {DroverError} no-room, invalid-argument, and as resolveCommand */
  async start(id: string, request: SpawnRequest): Promise<ManagedProcess> {
    this.#expire();
    const existing = this.#byId.get(id);
    if (existing !== undefined) return existing;
    if (id === '' || id === 'main' || id.length > maxExecIdLength) {
      throw new DroverError('invalid-argument', `${JSON.stringify(clip(id))} cannot be the id of an exec`);
    }
    if (this.#byId.size - this.#ended.length >= maxRunningExecs) {
      throw new DroverError('no-room', `${maxRunningExecs} execs are running in the sandbox already`, { hint: 'wait for one to end' });
    }
    const started = this.#start(id, request);
    this.#byId.set(id, started);
    try {
      return await started;
    } catch (error) {
      this.#byId.delete(id);
      throw error;
    }
  }

  /** @throws {DroverError} exec-not-found */
  async get(id: string): Promise<ManagedProcess> {
    this.#expire();
    const found = this.#byId.get(id);
    if (found === undefined) {
      throw new DroverError('exec-not-found', `the sandbox has no exec ${JSON.stringify(clip(id))}`, {
        hint: 'it never was, or it ended a while ago, or the sandbox was started again',
      });
    }
    return found;
  }

  async killAll(): Promise<void> {
    for (const started of this.#byId.values()) {
      // One that failed to start has nothing to kill.
      await started.then((p) => p.kill('SIGKILL')).catch(() => undefined);
    }
  }

  /** Resolves when every exec has told its exit. */
  async settled(): Promise<void> {
    await Promise.allSettled([...this.#byId.values()].map(async (started) => (await started).finished));
  }

  async #start(id: string, request: SpawnRequest): Promise<ManagedProcess> {
    const process = new ManagedProcess(id, await this.#spawn(request), request.terminal, this.#budget);
    void process.finished.then((exit) => {
      this.#ended.push({ id, at: exit.at });
      this.#expire();
    });
    return process;
  }

  #expire(): void {
    const before = Date.now() - endedExecTtlMs;
    while (this.#ended.length > maxEndedExecs || (this.#ended[0]?.at ?? Number.POSITIVE_INFINITY) < before) {
      const oldest = this.#ended.shift();
      if (oldest === undefined) return;
      const started = this.#byId.get(oldest.id);
      this.#byId.delete(oldest.id);
      void started?.then((p) => p.dispose());
    }
  }
}
