import { create } from '@bufbuild/protobuf';
import type { Duplex } from 'node:stream';
import { DroverError, type HostId } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import { isObservation, type CallOptions, type Hub, type HubListener, type Operation, type ResultValue } from '../../hub/hub.ts';
import type { Store } from '../../store/store.ts';
import { registration } from '../../store/testing/fixtures.ts';

type StateName = keyof typeof sandbox.SandboxState;
const stateNames = new Map<number, StateName>(Object.entries(sandbox.SandboxState).map(([name, value]) => [value, name as StateName]));

/** A simulated host. Its copies of sandboxes survive its connections, as those of an agent do on disk. */
export class FakeHost {
  readonly id: HostId;
  readonly copies = new Map<string, sandbox.SandboxObservation>();
  /** All received commands, `create sb-…`. */
  readonly commands: string[] = [];
  /** Called before a command is performed; may throw, wait, or drop the connection. */
  before: (operation: Operation) => Promise<void> | void = () => undefined;
  /** Sandboxes with a command under way. Overlapping commands for one sandbox are a fault of the reconciler. */
  readonly busy = new Set<string>();
  overlaps = 0;
  stream: AbortController | undefined;
  epoch = 0;
  #sequence = 0;

  constructor(id: HostId) {
    this.id = id;
  }

  has(id: string): StateName | undefined {
    const copy = this.copies.get(id);
    return copy === undefined ? undefined : stateNames.get(copy.state);
  }

  /** Changes a copy as the runtime would. @returns its observation */
  set(
    id: string,
    generation: bigint,
    state: StateName,
    more: {
      readonly exitCode?: number;
      readonly reason?: string;
      readonly startCount?: bigint;
      readonly networkCut?: boolean;
      readonly registrationClosed?: boolean;
    } = {},
  ): sandbox.SandboxObservation {
    const copy = create(sandbox.SandboxObservationSchema, {
      sandboxId: id,
      generation,
      state: sandbox.SandboxState[state],
      sequence: BigInt(++this.#sequence),
      startCount: 1n,
      runtime: 'fake',
      networkCut: this.copies.get(id)?.networkCut ?? false,
      registrationClosed: this.copies.get(id)?.registrationClosed ?? false,
      ...more,
    });
    this.copies.set(id, copy);
    return copy;
  }
}

/** The hub's contract over simulated hosts and a real store. */
export class FakeHub implements Hub {
  readonly #store: Store;
  readonly #hosts = new Map<HostId, FakeHost>();
  readonly #listeners = new Set<HubListener>();

  constructor(store: Store) {
    this.#store = store;
  }

  async connect(host: FakeHost, options: Parameters<typeof registration>[1] = {}): Promise<void> {
    this.#hosts.set(host.id, host);
    host.stream?.abort();
    const seen = [...host.copies.values()];
    const { epoch } = await this.#store.hosts.register(registration(host.id, { ...options, sandboxes: seen }), 'replica-1');
    host.epoch = epoch;
    host.stream = new AbortController();
    for (const listener of this.#listeners) listener.hostConnected?.(host.id, epoch, host.stream.signal, seen.filter(isObservation));
  }

  async drop(host: FakeHost): Promise<void> {
    host.stream?.abort(new DroverError('host-unavailable', 'the stream dropped'));
    host.stream = undefined;
    await this.#store.hosts.markDown(host.id, host.epoch, 'dropped');
    for (const listener of this.#listeners) listener.hostDisconnected?.(host.id, host.epoch, 'dropped');
  }

  /** Reports observations without a command, if the host is connected. */
  async report(host: FakeHost, ...observations: sandbox.SandboxObservation[]): Promise<void> {
    if (host.stream === undefined) return;
    await this.#store.sandboxes.observe(host.id, host.epoch, observations);
    for (const listener of this.#listeners) listener.observed?.(host.id, observations.filter(isObservation));
  }

  isConnected(hostId: HostId): boolean {
    return this.#hosts.get(hostId)?.stream !== undefined;
  }

  async call(hostId: HostId, operation: Operation, { signal }: CallOptions = {}): Promise<ResultValue> {
    const host = this.#hosts.get(hostId);
    const stream = host?.stream;
    if (host === undefined || stream === undefined) throw new DroverError('host-unavailable', 'not connected');
    const target = 'sandbox' in operation.value ? operation.value.sandbox : undefined;
    const id = target?.sandboxId ?? '';
    host.commands.push(`${operation.case} ${id}`);
    if (host.busy.has(id)) host.overlaps++;
    host.busy.add(id);
    const dropped = new Promise<never>((_, reject) => {
      stream.signal.addEventListener('abort', () => reject(new DroverError('host-unavailable', 'the stream dropped')), { once: true });
      // Ends the wait; the host continues.
      signal?.addEventListener('abort', () => reject(new DroverError('cancelled', 'the call was cancelled')), { once: true });
    });
    const performed = this.#perform(host, operation, id, target?.generation ?? 0n);
    // An agent also reports each change as an observation, on its next stream if this one has ended (L-16).
    const reported = performed.then(async (result) => {
      if (result.case === 'sandbox') await this.report(host, result.value);
      return result;
    });
    reported.catch(() => undefined);
    try {
      return await Promise.race([reported, dropped]);
    } finally {
      host.busy.delete(id);
    }
  }

  openHostStream(): Promise<Duplex> {
    return Promise.reject(new DroverError('unimplemented', 'no host streams in this test'));
  }

  openTunnel(): Promise<Duplex> {
    return Promise.reject(new DroverError('unimplemented', 'simulated hosts have no tunnels'));
  }

  disconnect(hostId: HostId): void {
    this.#hosts.get(hostId)?.stream?.abort();
  }

  on(listener: HubListener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  stats(): { readonly hosts: number; readonly pendingCommands: number } {
    return { hosts: [...this.#hosts.values()].filter((host) => host.stream !== undefined).length, pendingCommands: 0 };
  }

  /** Reports a failed create or start as an agent does: as failed or, if it may be retried, as preparing. */
  async #reportFailure(host: FakeHost, { case: kind }: Operation, id: string, generation: bigint, error: DroverError): Promise<void> {
    if (kind !== 'create' && kind !== 'start') return;
    const again = error.transient && error.code !== 'registry-unreachable';
    const startCount = host.copies.get(id)?.startCount ?? 0n;
    await this.report(host, host.set(id, generation, again ? 'PREPARING' : 'FAILED', { startCount, reason: error.code }));
  }

  async #perform(host: FakeHost, operation: Operation, id: string, generation: bigint): Promise<ResultValue> {
    try {
      await host.before(operation);
    } catch (thrown) {
      await this.#reportFailure(host, operation, id, generation, DroverError.from(thrown));
      throw thrown;
    }
    const existing = host.copies.get(id);
    const result = (state: StateName, more: Parameters<FakeHost['set']>[3] = {}): ResultValue => ({
      case: 'sandbox',
      value: host.set(id, generation, state, more),
    });
    const { networkCut, registrationClosed } = operation.case === 'create' || operation.case === 'start' ? operation.value : {};
    const cut = networkCut === undefined || registrationClosed === undefined ? {} : { networkCut, registrationClosed };
    const requireCopy = (): void => {
      if (existing === undefined) throw new DroverError('sandbox-not-found', `no ${id} here`);
    };
    switch (operation.case) {
      case 'create':
        return existing === undefined || existing.startCount === 0n ? result('RUNNING', cut) : { case: 'sandbox', value: existing };
      case 'start':
      case 'resume':
        requireCopy();
        return result('RUNNING', cut);
      case 'pause':
        requireCopy();
        return result('PAUSED');
      case 'setNetworkCut':
        requireCopy();
        return result(host.has(id) ?? 'RUNNING', {
          networkCut: operation.value.cut,
          registrationClosed: operation.value.registrationClosed,
        });
      case 'stop':
        return existing === undefined ? { case: undefined } : result('STOPPED');
      case 'destroy':
        host.copies.delete(id);
        return { case: undefined };
      default:
        throw new DroverError('unimplemented', `${operation.case} is not simulated`);
    }
  }
}
