import { create } from '@bufbuild/protobuf';
import { DroverError, type SandboxId } from '@drover/foundation';
import { link, sandbox } from '@drover/protocol';
import { Readable, type Duplex } from 'node:stream';
import type { Images } from '../../images/images.ts';
import type { HostStream, Sandboxes } from '../../sandboxes/sandboxes.ts';

type Fields = Partial<Omit<sandbox.SandboxObservation, '$typeName' | '$unknown' | 'sandboxId' | 'sequence'>>;

/** Sandboxes in memory: for the link's tests, and for fleets of hosts in one process. */
export class FakeSandboxes implements Sandboxes {
  readonly #rows = new Map<string, sandbox.SandboxObservation>();
  readonly #listeners = new Set<(observation: sandbox.SandboxObservation) => void>();
  #sequence = 0n;
  /** Creates that were executed, repeated ones included. */
  creates = 0;
  /** What `create` waits for. */
  gate: Promise<void> = Promise.resolve();
  /** What `dial` gives. */
  dialled: ((id: SandboxId, port: 'init' | number, signal: AbortSignal) => Promise<Duplex>) | undefined;

  /** A sandbox changed by itself. */
  set(id: string, fields: Fields): sandbox.SandboxObservation {
    const known = this.#rows.get(id);
    const row = Object.assign(create(sandbox.SandboxObservationSchema), known, fields, { sandboxId: id, sequence: ++this.#sequence });
    this.#rows.set(id, row);
    for (const listener of this.#listeners) listener(row);
    return row;
  }

  async start(): Promise<void> {}

  async create(command: link.CreateSandbox, progress: (progress: link.CommandProgress) => void): Promise<sandbox.SandboxObservation> {
    this.creates++;
    progress(create(link.CommandProgressSchema, { message: 'making the sandbox' }));
    await this.gate;
    const { sandboxId, generation } = refOf(command.sandbox);
    const resources = command.spec?.resources;
    return this.set(sandboxId, {
      generation,
      state: sandbox.SandboxState.RUNNING,
      startCount: 1n,
      runtime: 'fake',
      networkCut: command.networkCut,
      ...(resources === undefined ? {} : { resources }),
    });
  }

  async startAgain(command: link.StartSandbox): Promise<sandbox.SandboxObservation> {
    return this.#move(command.sandbox, sandbox.SandboxState.RUNNING, { networkCut: command.networkCut });
  }

  async stop(command: link.StopSandbox): Promise<sandbox.SandboxObservation | undefined> {
    if (!this.#rows.has(refOf(command.sandbox).sandboxId)) return undefined;
    return this.#move(command.sandbox, sandbox.SandboxState.STOPPED);
  }

  async pause(command: link.PauseSandbox): Promise<sandbox.SandboxObservation> {
    return this.#move(command.sandbox, sandbox.SandboxState.PAUSED);
  }

  async resume(command: link.ResumeSandbox): Promise<sandbox.SandboxObservation> {
    return this.#move(command.sandbox, sandbox.SandboxState.RUNNING);
  }

  async setNetworkCut(command: link.SetNetworkCut): Promise<sandbox.SandboxObservation> {
    const { sandboxId, generation } = refOf(command.sandbox);
    this.#get(sandboxId);
    return this.set(sandboxId, { generation, networkCut: command.cut, registrationClosed: command.registrationClosed });
  }

  async destroy(command: link.DestroySandbox): Promise<void> {
    this.#rows.delete(refOf(command.sandbox).sandboxId);
  }

  async inspect(id: SandboxId): Promise<sandbox.SandboxObservation> {
    return this.#get(id);
  }

  list(): readonly sandbox.SandboxObservation[] {
    return [...this.#rows.values()];
  }

  async applyPolicy(command: link.ApplyPolicy): Promise<void> {
    this.#get(command.sandboxId);
  }

  hostStream(id: SandboxId): HostStream {
    this.#get(id);
    return Readable.from([]);
  }

  async stats(command: link.CollectStats): Promise<link.Stats> {
    const sandboxes = command.sandboxIds
      .filter((id) => this.#rows.has(id))
      .map((sandboxId) => ({ sandboxId, memoryBytes: 1024n, pids: 1 }));
    return create(link.StatsSchema, { sandboxes });
  }

  async dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex> {
    if (this.dialled === undefined) throw new DroverError('sandbox-not-running', `${id} is not running`);
    return await this.dialled(id, port, signal);
  }

  onObserved(listener: (observation: sandbox.SandboxObservation) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async close(): Promise<void> {}

  #move(ref: link.SandboxRef | undefined, state: sandbox.SandboxState, fields: Fields = {}): sandbox.SandboxObservation {
    const { sandboxId, generation } = refOf(ref);
    this.#get(sandboxId);
    return this.set(sandboxId, { ...fields, generation, state });
  }

  #get(id: string): sandbox.SandboxObservation {
    const row = this.#rows.get(id);
    if (row === undefined) throw new DroverError('sandbox-not-found', `there is no sandbox ${id} on this host`);
    return row;
  }
}

function refOf(ref: link.SandboxRef | undefined): link.SandboxRef {
  if (ref === undefined) throw new DroverError('invalid-argument', 'the command names no sandbox');
  return ref;
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
