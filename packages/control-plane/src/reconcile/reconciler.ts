import { SerialExecutor, type Clock, type HostId, type Logger, type SandboxId } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import type { Hub } from '../hub/index.ts';
import * as limits from '../limits.ts';
import type { SecretBox } from '../secrets/index.ts';
import type { Store } from '../store/index.ts';
import { HostLoop } from './host-loop.ts';

export interface ReconcilerOptions {
  readonly store: Store;
  readonly hub: Hub;
  /** Opens the secrets that a start carries to its host. */
  readonly secrets: SecretBox;
  readonly clock: Clock;
  readonly logger: Logger;
  /** A host said what it sees of a sandbox, in the answer to a step; what it says by itself comes from the hub. */
  readonly onSandboxSeen?: (id: SandboxId) => void;
  /** A host's copy of a sandbox is no more: its session is over. */
  readonly onSandboxGone?: (id: SandboxId) => void;
  /** For the jitter of retries; tests give their own. */
  readonly random?: () => number;
}

/**
 * Holds one loop for each host whose stream this replica holds (L-28); the loop ends with the stream. What other parts and other
 * replicas change in the store reaches the loops as events, which only say which sandbox to look at.
 */
export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #loops = new Map<HostId, { readonly loop: HostLoop; readonly epoch: number }>();
  /** Every loop that has not ended, also those that a newer stream of their host has replaced. */
  readonly #running = new Map<HostLoop, Promise<void>>();
  #closed = false;
  readonly #reading = new SerialExecutor();
  #detach: (() => void) | undefined;
  #lastEvent: number | undefined;

  constructor(options: ReconcilerOptions) {
    this.#options = options;
  }

  /** Follows the hub and the store, until called back or closed. */
  attach(): () => void {
    const { hub, store } = this.#options;
    const offHub = hub.on({
      hostConnected: (hostId, epoch, signal, seen) => this.#connected(hostId, epoch, signal, seen),
      observed: (hostId, observations) => this.#loops.get(hostId)?.loop.observed(observations),
    });
    const offStore = store.events.onAppend(() => this.#follow());
    this.#detach = () => {
      offHub();
      offStore();
    };
    return () => this.#detach?.();
  }

  /** Looks at one sandbox, or at all, of a host again. Nothing when its stream is elsewhere: the event of the change wakes its owner. */
  poke(hostId: HostId, id?: SandboxId): void {
    this.#loops.get(hostId)?.loop.poke(id);
  }

  /** Stops; commands under way go on on their hosts (L-21). */
  async close(): Promise<void> {
    this.#detach?.();
    this.#closed = true;
    for (const loop of this.#running.keys()) loop.end();
    await this.#reading.idle();
    await Promise.all(this.#running.values());
  }

  #connected(hostId: HostId, epoch: number, stream: AbortSignal, seen: readonly sandbox.SandboxObservation[]): void {
    const known = this.#loops.get(hostId);
    // L-11: the newer epoch wins, in whatever order they are told.
    if (known !== undefined && known.epoch > epoch) return;
    const { store, hub, secrets, clock, logger, onSandboxSeen, onSandboxGone, random } = this.#options;
    const loop = new HostLoop({
      store,
      hub,
      secrets,
      clock,
      logger,
      hostId,
      epoch,
      signal: stream,
      seen,
      onSeen: (id) => onSandboxSeen?.(id),
      onGone: (id) => onSandboxGone?.(id),
      ...(random === undefined ? {} : { random }),
    });
    const done = loop.run().finally(() => {
      if (this.#loops.get(hostId)?.loop === loop) this.#loops.delete(hostId);
      this.#running.delete(loop);
    });
    this.#running.set(loop, done);
    this.#loops.set(hostId, { loop, epoch });
  }

  /** Reads which sandboxes changed since the last look, in any replica, and pokes the loops that may hold them. */
  #follow(): void {
    if (this.#closed || this.#reading.waiting > 1) return;
    this.#reading
      .run(() => this.#readEvents())
      .catch((error: unknown) => {
        this.#options.logger.error({ err: error }, 'events could not be read; every host is looked at again');
        for (const { loop } of this.#loops.values()) loop.poke();
      });
  }

  async #readEvents(): Promise<void> {
    const { events } = this.#options.store;
    if (this.#lastEvent === undefined) {
      // What happened before the first look is in the rows, which each loop reads when it begins.
      this.#lastEvent = await events.lastId();
      for (const { loop } of this.#loops.values()) loop.poke();
      return;
    }
    for (;;) {
      const page = await events.after(this.#lastEvent, limits.eventPage, { kinds: ['sandbox'] });
      for (const event of page) {
        const id = event.subject as SandboxId;
        const hostId = event.data['hostId'];
        if (typeof hostId === 'string') this.poke(hostId as HostId, id);
        else for (const { loop } of this.#loops.values()) loop.poke(id);
        this.#lastEvent = event.id;
      }
      if (page.length < limits.eventPage || this.#closed) return;
    }
  }
}
