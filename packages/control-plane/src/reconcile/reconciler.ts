import { isSandboxId, type Clock, type HostId, type Logger, type SandboxId } from '@drover/foundation';
import type { StoredEvent } from '../events/index.ts';
import type { EventFeed } from '../feed/index.ts';
import type { Hub, Observation } from '../hub/index.ts';
import type { SecretBox } from '../secrets/index.ts';
import type { Store } from '../store/index.ts';
import { HostLoop } from './host-loop.ts';

export interface ReconcilerOptions {
  readonly store: Store;
  readonly hub: Hub;
  readonly feed: Pick<EventFeed, 'listen'>;
  /** Decrypts the secrets that a create or a start carries to the host. */
  readonly secrets: SecretBox;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Called when a host no longer holds a copy of the sandbox: its session must end. */
  readonly onAbsent?: (id: SandboxId) => void;
  /** For the jitter of retries. */
  readonly random?: () => number;
}

/**
 * One loop for each host whose stream this replica holds (L-28); a loop ends with its stream. Changes by other
 * components and replicas reach the loops as events of the store.
 */
export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #loops = new Map<HostId, { readonly loop: HostLoop; readonly epoch: number }>();
  /** All loops that have not ended, including those that a newer stream of the host has replaced. */
  readonly #running = new Map<HostLoop, Promise<void>>();
  #detach: (() => void) | undefined;

  constructor(options: ReconcilerOptions) {
    this.#options = options;
  }

  /** Subscribes to the hub and the events. @returns a function that unsubscribes */
  attach(): () => void {
    const { hub, feed } = this.#options;
    const off = [
      hub.on({
        hostConnected: (hostId, epoch, signal, copies) => this.#connected(hostId, epoch, signal, copies),
        observed: (hostId, observations) => this.#loops.get(hostId)?.loop.observed(observations),
      }),
      feed.listen((subject, event) => this.#follow(subject, event)),
    ];
    this.#detach = () => {
      for (const stop of off) stop();
    };
    return this.#detach;
  }

  /** Ends the loops; commands under way continue on their hosts (L-21). */
  async close(): Promise<void> {
    this.#detach?.();
    for (const loop of this.#running.keys()) loop.end();
    await Promise.all(this.#running.values());
  }

  #connected(hostId: HostId, epoch: number, signal: AbortSignal, copies: readonly Observation[]): void {
    const known = this.#loops.get(hostId);
    // L-11: the newer epoch wins, even if the older stream is reported later.
    if (known !== undefined && known.epoch > epoch) return;
    const { feed: _, onAbsent = () => undefined, ...options } = this.#options;
    const loop = new HostLoop({ ...options, onAbsent, hostId, signal, copies });
    const done = loop.run().finally(() => {
      if (this.#loops.get(hostId)?.loop === loop) this.#loops.delete(hostId);
      this.#running.delete(loop);
    });
    this.#running.set(loop, done);
    this.#loops.set(hostId, { loop, epoch });
  }

  #follow(subject: string, event: Parameters<Parameters<EventFeed['listen']>[0]>[1]): void {
    if (event === undefined) return;
    if (event.lost > 0) for (const { loop } of this.#loops.values()) loop.wake();
    if (!isSandboxId(subject) || !changesDesiredState(event)) return;
    const hostId = event.data['hostId'];
    for (const [id, { loop }] of this.#loops) if (id === hostId || loop.holds(subject)) loop.wake(subject);
  }
}

const desiredStateEvents: ReadonlySet<string> = new Set([
  'SandboxScheduled',
  'SandboxDesiredChanged',
  'SandboxContained',
  'SandboxReleased',
  'IdentityRevoked',
  'IdentityReinstated',
]);

/** Whether the event may require a step on the sandbox's host. A change that the host has reported requires none. */
function changesDesiredState({ type, data }: StoredEvent): boolean {
  if (desiredStateEvents.has(type)) return true;
  // `pending`: the sandbox was unplaced. `failed`: its start was given up.
  return type === 'SandboxStateChanged' && (data['to'] === 'pending' || data['to'] === 'failed');
}
