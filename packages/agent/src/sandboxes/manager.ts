import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { DroverError, systemClock, type Clock, type SandboxId } from '@drover/foundation';
import type { LogEntry } from '@drover/init';
import type { sandbox } from '@drover/protocol';
import type { Policy } from '@drover/spec/policy';
import type { Backend } from '../backends/index.ts';
import type { PullProgress } from '../images/index.ts';
import { newRecord, sandboxRecords } from './record.ts';
import { restoreRunDirectory, sweepRunDirectories } from './run-directory.ts';
import { Sandbox } from './sandbox.ts';
import type {
  CopyPart,
  CopySource,
  CreateCommand,
  LogOptions,
  NetworkClosure,
  SandboxCommand,
  Sandboxes,
  SandboxStats,
  StartCommand,
  StopCommand,
} from './sandboxes.ts';
import type { SandboxHost } from './start.ts';

export interface SandboxManagerOptions extends Omit<SandboxHost, 'records' | 'observed' | 'removed' | 'clock'> {
  /** The first is the default. */
  readonly backends: readonly Backend[];
  readonly clock?: Clock;
}

type Observation = sandbox.SandboxObservation;

/** The table of this host's sandboxes. */
export class SandboxManager implements Sandboxes {
  readonly #host: SandboxHost;
  readonly #backends: readonly Backend[];
  readonly #sandboxes = new Map<SandboxId, Sandbox>();
  readonly #listeners = new Set<(observation: Observation) => void>();

  constructor({ backends, clock = systemClock, ...host }: SandboxManagerOptions) {
    this.#backends = backends;
    this.#host = {
      ...host,
      clock,
      records: sandboxRecords(join(host.stateDirectory, 'records'), host.logger),
      observed: (observation) => {
        for (const listener of this.#listeners) listener(observation);
      },
      removed: (id) => void this.#sandboxes.delete(id),
    };
  }

  /** Adopts the sandboxes that an earlier agent left and removes what belongs to none of them. Call it first. */
  async open(): Promise<void> {
    const { stateDirectory, records, logger } = this.#host;
    await mkdir(join(stateDirectory, 'run'), { recursive: true, mode: 0o711 });
    for (const record of await records.load())
      this.#sandboxes.set(record.id, new Sandbox(this.#host, this.#backend(record.runtime), record));
    const known = new Set(this.#sandboxes.keys());
    // A pool other than the sandboxes' own is refused before anything of theirs is touched.
    for (const backend of this.#backends) await backend.open(known);
    // One after another: after a boot of the host each is a mount. A failure must not keep the other sandboxes from the agent.
    for (const id of known) {
      await restoreRunDirectory(stateDirectory, id).catch((error: unknown) => {
        logger.error({ err: error, sandbox: id }, 'the run directory of a sandbox could not be mounted: its log is not available');
      });
    }
    await Promise.all([...this.#sandboxes.values()].map(async (each) => await each.adopt()));
    const kept = new Set(this.#sandboxes.keys());
    for (const backend of this.#backends) {
      const swept = await backend.sweep(kept);
      if (swept.length > 0) logger.warn({ backend: backend.name, swept }, 'removed what an earlier agent left behind');
    }
    await sweepRunDirectories(stateDirectory, kept);
  }

  async create(command: CreateCommand, onProgress: (progress: PullProgress) => void): Promise<Observation> {
    let found = this.#sandboxes.get(command.id);
    if (found === undefined) {
      const backend = this.#backend(command.spec.runtime ?? '');
      found = new Sandbox(this.#host, backend, newRecord(command, backend.name));
      this.#sandboxes.set(command.id, found);
    }
    return await found.create(command, onProgress);
  }

  async start(command: StartCommand): Promise<Observation> {
    return await this.#get(command.id).start(command);
  }

  async stop(command: StopCommand): Promise<Observation | undefined> {
    return await this.#sandboxes.get(command.id)?.stop(command);
  }

  async pause(command: SandboxCommand): Promise<Observation> {
    return await this.#get(command.id).pause(command);
  }

  async resume(command: SandboxCommand): Promise<Observation> {
    return await this.#get(command.id).resume(command);
  }

  async setClosure(command: SandboxCommand & NetworkClosure): Promise<Observation> {
    return await this.#get(command.id).setClosure(command);
  }

  async destroy(id: SandboxId): Promise<void> {
    await this.#sandboxes.get(id)?.destroy();
  }

  inspect(id: SandboxId): Observation {
    return this.#get(id).observation;
  }

  list(): readonly Observation[] {
    return [...this.#sandboxes.values()].map(({ observation }) => observation);
  }

  async applyPolicy(id: SandboxId, policy: Policy): Promise<void> {
    await this.#get(id).applyPolicy(policy);
  }

  logs(id: SandboxId, options: LogOptions, signal: AbortSignal): AsyncIterable<LogEntry> {
    return this.#get(id).logs(options, signal);
  }

  copyOut(id: SandboxId, source: CopySource, signal: AbortSignal): AsyncIterable<CopyPart> {
    return this.#get(id).copyOut(source, signal);
  }

  async stats(ids: readonly SandboxId[] = [...this.#sandboxes.keys()]): Promise<readonly SandboxStats[]> {
    const stats = await Promise.all(ids.map(async (id) => await this.#sandboxes.get(id)?.stats()));
    return stats.filter((each) => each !== undefined);
  }

  async dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex> {
    return await this.#get(id).dial(port, signal);
  }

  onObserved(listener: (observation: Observation) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Stops watching; sandboxes run on. */
  async close(): Promise<void> {
    await Promise.all([...this.#sandboxes.values()].map(async (each) => await each.close()));
    for (const backend of this.#backends) await backend.close();
  }

  #get(id: SandboxId): Sandbox {
    const found = this.#sandboxes.get(id);
    if (found === undefined) throw new DroverError('sandbox-not-found', `the sandbox ${id} is not on this host`);
    return found;
  }

  #backend(name: string): Backend {
    const found = name === '' ? this.#backends[0] : this.#backends.find((backend) => backend.name === name);
    if (found !== undefined) return found;
    throw new DroverError('missing-component', name === '' ? 'this host has no runtime' : `this host has no ${name} runtime`, {
      hint: 'see drover doctor on the host',
    });
  }
}
