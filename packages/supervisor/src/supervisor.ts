import { DroverError, type Clock, type Logger } from '@drover/foundation';
import { limits } from './limits.ts';
import type { Announcement } from './machine.ts';
import { SupervisedProcess, type ProcessSpec, type ProcessStatus } from './process.ts';

export interface SupervisorOptions {
  readonly logger: Logger;
  /** The lifetime of everything under it. */
  readonly signal?: AbortSignal;
  readonly clock?: Clock;
  readonly onChange?: (status: ProcessStatus, announced: Announcement | undefined) => void;
}

/** Processes by name. Each has its own restarts and its own circuit; none waits for another. */
export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #processes = new Map<string, SupervisedProcess>();
  #stopping = false;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    options.signal?.addEventListener('abort', () => (this.#stopping = true), { once: true });
  }

  /** Takes a process in and starts it. @throws {DroverError} failed-precondition for a name that is taken, or while stopping; no-room */
  start(spec: ProcessSpec): SupervisedProcess {
    if (this.#stopping) throw new DroverError('failed-precondition', `${spec.name} cannot start: the supervisor is stopping`);
    if (this.#processes.has(spec.name)) throw new DroverError('failed-precondition', `a process named ${spec.name} is supervised already`);
    if (this.#processes.size >= limits.processes) throw new DroverError('no-room', `${limits.processes} processes are supervised already`);
    const child = new SupervisedProcess(spec, this.#options);
    this.#processes.set(spec.name, child);
    child.start();
    return child;
  }

  /** Restarts exactly one process, in its place (G-6). Unknown, or while stopping: nothing, and false (G-7). */
  restart(name: string): boolean {
    const child = this.#processes.get(name);
    if (child === undefined || this.#stopping) {
      this.#options.logger.warn(
        { process: name },
        this.#stopping ? 'not restarted: the supervisor is stopping' : 'not restarted: no such process',
      );
      return false;
    }
    child.restart();
    return true;
  }

  /** Stops one process and forgets it. Unknown: nothing. */
  async remove(name: string): Promise<void> {
    await this.#processes.get(name)?.stop();
    this.#processes.delete(name);
  }

  status(): readonly ProcessStatus[] {
    return [...this.#processes.values()].map((p) => p.status());
  }

  /** Stops everything, all at once; resolves when all are gone. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all([...this.#processes.values()].map((p) => p.stop()));
  }
}
