import { clip, DroverError, Notifier, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import * as limits from '../limits.ts';
import { hasEnded, runIsOver, type HostRow, type SandboxRow } from '../model/index.ts';
import type { Store, Tables } from '../store/index.ts';
import { placementRequest, plan } from './plan.ts';

export interface PlacementOptions {
  readonly store: Store;
  readonly clock: Clock;
  readonly logger: Logger;
}

/** Finds hosts for sandboxes that have none (L-24). Any number may run at once: a place is taken in the store, or not at all. */
export class Placement {
  readonly #options: PlacementOptions;
  readonly #changed: Notifier;

  constructor(options: PlacementOptions) {
    this.#options = options;
    this.#changed = new Notifier(options.clock);
  }

  /** As `placeSandbox`. @throws {DroverError} sandbox-not-found */
  async placeNow(id: SandboxId): Promise<SandboxRow> {
    return await placeSandbox(this.#options.store, await mustGet(this.#options.store, id));
  }

  /** Places what waits, each time that something changed, and at least every `placementIntervalMs`; until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { store, clock, logger } = this.#options;
    const unsubscribe = store.events.onAppend(this.#changed.notify);
    try {
      while (!signal.aborted) {
        try {
          await this.#round(signal);
        } catch (error) {
          if (!signal.aborted) logger.error({ err: error }, 'a placement round failed; the next one follows');
        }
        await clock.sleep(limits.placementPauseMs, signal);
        await this.#changed.wait(signal, limits.placementIntervalMs);
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      unsubscribe();
    }
  }

  /** Makes `run` look again now. */
  poke(): void {
    this.#changed.notify();
  }

  async #round(signal: AbortSignal): Promise<void> {
    for (const row of await this.#options.store.sandboxes.unplaced(limits.placementBatch)) {
      if (signal.aborted) return;
      await this.placeNow(row.id);
    }
  }
}

/**
 * Places one sandbox if it waits for a place; gives the row as it is then, placed or `unschedulable` with why.
 * @param row as it was read last; what has changed since shows when the place is taken
 * @param snapshot the hosts, where they have been read just now
 * @throws {DroverError} sandbox-not-found
 */
export async function placeSandbox(
  store: Pick<Tables, 'hosts' | 'sandboxes'>,
  row: SandboxRow,
  snapshot?: readonly HostRow[],
): Promise<SandboxRow> {
  const { id } = row;
  let [now, hosts] = [row, snapshot];
  for (let attempt = 1; waitsForPlace(now); attempt++) {
    const decision = plan(hosts ?? (await store.hosts.list()), placementRequest(now));
    if (decision.kind !== 'host') await store.sandboxes.setPending(id, 'unschedulable', clip(decision.message, 2_000));
    else if (!(await store.sandboxes.place(id, decision.hostId))) {
      if (attempt < limits.placementAttempts) {
        // A lost race: the room went to another one, or the row changed. The next snapshot shows which.
        [now, hosts] = [await mustGet(store, id), undefined];
        continue;
      }
      await store.sandboxes.setPending(id, 'contended', 'many sandboxes are being placed at once; it is next in line');
    }
    return (await store.sandboxes.get(id)) ?? now;
  }
  return now;
}

async function mustGet({ sandboxes }: Pick<Tables, 'sandboxes'>, id: SandboxId): Promise<SandboxRow> {
  const row = await sandboxes.get(id);
  if (row === undefined) throw new DroverError('sandbox-not-found', `there is no sandbox ${id}`);
  return row;
}

function waitsForPlace(row: SandboxRow): boolean {
  if (row.deletedAt !== undefined || (row.desired !== 'running' && row.desired !== 'paused') || runIsOver(row)) return false;
  return row.hostId === undefined || (row.pendingReason !== '' && hasEnded(row.observed));
}
