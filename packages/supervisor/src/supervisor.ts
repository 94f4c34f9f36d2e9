import { DroverError, type Clock, type Logger } from '@drover/foundation';
import { isFinal, type Announcement } from './lifecycle.ts';
import { limits } from './limits.ts';
import { onSignals } from './pid1.ts';
import { SupervisedProcess, type ProcessSpec, type ProcessStatus } from './process.ts';

export interface SupervisorOptions {
  readonly logger: Logger;
  /** The lifetime of everything that is supervised. */
  readonly signal?: AbortSignal;
  readonly clock?: Clock;
  readonly onChange?: (status: ProcessStatus, announcement: Announcement | undefined) => void;
}

/** What a signal asks for, by the names of the processes (G-8). */
export type SignalPlan = Readonly<
  Partial<Record<NodeJS.Signals, { readonly reload?: readonly string[]; readonly restart?: readonly string[] }>>
>;

type Request = 'reload' | 'restart';

/** Processes by name. Each has its own restarts and its own circuit; none waits for another. */
export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #processes = new Map<string, SupervisedProcess>();
  readonly #requests = new Map<string, Request>();
  readonly #ended = Promise.withResolvers<number>();
  #stopping = false;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    options.signal?.addEventListener('abort', () => (this.#stopping = true), { once: true });
  }

  /**
   * Resolves when every process has ended and none will be restarted, with the largest of their exit codes: a graceful stop does not
   * hide an earlier crash (G-10).
   */
  get ended(): Promise<number> {
    return this.#ended.promise;
  }

  /** Adds a process and starts it. @throws {DroverError} failed-precondition for a name that is taken, or during shutdown; no-room */
  start(spec: ProcessSpec): SupervisedProcess {
    if (this.#stopping) throw new DroverError('failed-precondition', `${spec.name} cannot start: the supervisor is stopping`);
    if (this.#processes.has(spec.name)) throw new DroverError('failed-precondition', `a process named ${spec.name} is supervised already`);
    if (this.#processes.size >= limits.processes) throw new DroverError('no-room', `${limits.processes} processes are supervised already`);
    const { clock, signal } = this.#options;
    const child = new SupervisedProcess(spec, {
      ...(clock !== undefined && { clock }),
      ...(signal !== undefined && { signal }),
      onChange: (status, announcement) => this.#onChange(status, announcement),
    });
    this.#processes.set(spec.name, child);
    child.start();
    return child;
  }

  /** Restarts one process in its place (G-6). Returns false, and does nothing, for an unknown name and during shutdown (G-7). */
  restart(name: string): boolean {
    const child = this.#find(name, 'restart');
    child?.restart();
    return child !== undefined;
  }

  /** Asks one process to read its configuration again (G-8). Returns false, and does nothing, where `restart` does, or when it cannot. */
  reload(name: string): boolean {
    const child = this.#find(name, 'reload');
    if (child === undefined || child.reload()) return child !== undefined;
    this.#options.logger.warn({ process: name }, 'no reload: the process does not run, or does not support it');
    return false;
  }

  /**
   * Follows signals. A handler only records the request: repeated requests for one process coalesce, a restart includes a reload, and a
   * shutdown clears them (G-8).
   */
  onSignals(plan: SignalPlan): Disposable {
    const handlers = Object.entries(plan).map(([signal, { reload = [], restart = [] }]) => [
      signal as NodeJS.Signals,
      () => {
        for (const name of reload) this.#request(name, 'reload');
        for (const name of restart) this.#request(name, 'restart');
      },
    ]);
    return onSignals(Object.fromEntries(handlers) as Partial<Record<NodeJS.Signals, () => void>>);
  }

  /** Stops one process and removes it. Unknown: nothing. */
  async remove(name: string): Promise<void> {
    await this.#processes.get(name)?.stop();
    this.#processes.delete(name);
  }

  /** One response for the health of all (G-11). */
  status(): readonly ProcessStatus[] {
    return [...this.#processes.values()].map((p) => p.status());
  }

  /** Stops every process concurrently; resolves when all have exited. */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.#requests.clear();
    await Promise.all([...this.#processes.values()].map((p) => p.stop()));
    this.#checkEnded();
  }

  #find(name: string, request: Request): SupervisedProcess | undefined {
    const child = this.#stopping ? undefined : this.#processes.get(name);
    if (child === undefined) {
      const why = this.#stopping ? 'the supervisor is stopping' : 'no such process';
      this.#options.logger.warn({ process: name }, `no ${request}: ${why}`);
    }
    return child;
  }

  #request(name: string, request: Request): void {
    if (this.#requests.size === 0) setImmediate(() => this.#serveRequests());
    if (this.#requests.get(name) !== 'restart') this.#requests.set(name, request);
  }

  #serveRequests(): void {
    for (const [name, request] of this.#requests) this[request](name);
    this.#requests.clear();
  }

  #onChange(status: ProcessStatus, announcement: Announcement | undefined): void {
    const { name, pid, state, restarts, lastError, lastExit } = status;
    if (announcement !== undefined) {
      const fields = { process: name, childPid: pid, state, restarts, ...(lastError && { lastError }), ...(lastExit && { lastExit }) };
      const expected = announcement === 'running' || announcement === 'stopped' || announcement === 'circuit-closed';
      this.#options.logger[expected ? 'info' : 'warn'](fields, `${name}: ${announcement}`);
    }
    this.#options.onChange?.(status, announcement);
    this.#checkEnded();
  }

  #checkEnded(): void {
    const all = this.status();
    if (!all.every(({ state }) => isFinal({ phase: state }))) return;
    if (this.#stopping || all.some(({ state }) => state === 'exited'))
      this.#ended.resolve(Math.max(0, ...all.map(({ exitCode }) => exitCode)));
  }
}
