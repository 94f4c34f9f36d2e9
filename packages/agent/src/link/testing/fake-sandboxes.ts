import { create } from '@bufbuild/protobuf';
import { DroverError, type SandboxId } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import { Readable, type Duplex } from 'node:stream';
import type { Images, PullProgress } from '../../images/index.ts';
import type {
  CopyPart,
  CreateCommand,
  NetworkClosure,
  SandboxCommand,
  Sandboxes,
  SandboxStats,
  StartCommand,
} from '../../sandboxes/index.ts';

type Observation = sandbox.SandboxObservation;
type Fields = Partial<Omit<Observation, '$typeName' | '$unknown' | 'sandboxId' | 'sequence'>>;

/** Sandboxes in memory: for the link's tests, and for fleets of hosts in one process. */
export class FakeSandboxes implements Sandboxes {
  readonly #rows = new Map<string, Observation>();
  readonly #listeners = new Set<(observation: Observation) => void>();
  #sequence = 0n;
  /** Creates that were executed, repeated ones included. */
  creates = 0;
  /** `create` awaits it. */
  gate: Promise<void> = Promise.resolve();
  /** Returned by `dial`. */
  dialled: ((id: SandboxId, port: 'init' | number, signal: AbortSignal) => Promise<Duplex>) | undefined;

  /** Changes a sandbox without a command. */
  set(id: string, fields: Fields): Observation {
    const known = this.#rows.get(id);
    const row = Object.assign(create(sandbox.SandboxObservationSchema), known, fields, { sandboxId: id, sequence: ++this.#sequence });
    this.#rows.set(id, row);
    for (const listener of this.#listeners) listener(row);
    return row;
  }

  async create(command: CreateCommand, onProgress: (progress: PullProgress) => void): Promise<Observation> {
    this.creates++;
    onProgress({ message: 'making the sandbox', doneBytes: 0, totalBytes: 0, doneLayers: 0, totalLayers: 0 });
    await this.gate;
    const { resources } = command.spec.message;
    return this.set(command.id, {
      generation: BigInt(command.generation),
      state: sandbox.SandboxState.RUNNING,
      startCount: 1n,
      runtime: 'fake',
      networkCut: command.networkCut,
      ...(resources === undefined ? {} : { resources }),
    });
  }

  async start(command: StartCommand): Promise<Observation> {
    return this.#move(command, sandbox.SandboxState.RUNNING, { networkCut: command.networkCut });
  }

  async stop(command: SandboxCommand): Promise<Observation | undefined> {
    return this.#rows.has(command.id) ? this.#move(command, sandbox.SandboxState.STOPPED) : undefined;
  }

  async pause(command: SandboxCommand): Promise<Observation> {
    return this.#move(command, sandbox.SandboxState.PAUSED);
  }

  async resume(command: SandboxCommand): Promise<Observation> {
    return this.#move(command, sandbox.SandboxState.RUNNING);
  }

  async setClosure({ id, generation, networkCut, registrationClosed }: SandboxCommand & NetworkClosure): Promise<Observation> {
    this.#get(id);
    return this.set(id, { generation: BigInt(generation), networkCut, registrationClosed });
  }

  async destroy(id: SandboxId): Promise<void> {
    this.#rows.delete(id);
  }

  inspect(id: SandboxId): Observation {
    return this.#get(id);
  }

  list(): readonly Observation[] {
    return [...this.#rows.values()];
  }

  async applyPolicy(id: SandboxId): Promise<void> {
    this.#get(id);
  }

  logs(id: SandboxId): AsyncIterable<never> {
    this.#get(id);
    return Readable.from([]) as AsyncIterable<never>;
  }

  copyOut(id: SandboxId): AsyncIterable<CopyPart> {
    return this.logs(id);
  }

  async stats(ids = [...this.#rows.keys()] as SandboxId[]): Promise<readonly SandboxStats[]> {
    return ids.filter((id) => this.#rows.has(id)).map((id) => ({ id, cpuUsec: 0, memoryBytes: 1024, pids: 1, at: 0 }));
  }

  async dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex> {
    if (this.dialled === undefined) throw new DroverError('sandbox-not-running', `${id} is not running`);
    return await this.dialled(id, port, signal);
  }

  onObserved(listener: (observation: Observation) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #move({ id, generation }: SandboxCommand, state: sandbox.SandboxState, fields: Fields = {}): Observation {
    this.#get(id);
    return this.set(id, { ...fields, generation: BigInt(generation), state });
  }

  #get(id: string): Observation {
    const row = this.#rows.get(id);
    if (row === undefined) throw new DroverError('sandbox-not-found', `there is no sandbox ${id} on this host`);
    return row;
  }
}

/** An image store with nothing in it. */
export const noImages: Images = {
  ensure: (reference) => Promise.reject(new DroverError('image-not-found', `there is no image ${reference}`)),
  list: () => Promise.resolve([]),
  remove: (reference) => Promise.reject(new DroverError('image-not-found', `there is no image ${reference}`)),
  prune: () => Promise.resolve({ removed: [], freedBytes: 0 }),
  hold: () => Promise.resolve(),
  release: () => Promise.resolve(),
  retain: () => Promise.resolve(),
};

/** A host without volumes, which makes none. */
export const noVolumes = { create: () => Promise.resolve(), remove: () => Promise.resolve(), list: () => Promise.resolve([]) };
