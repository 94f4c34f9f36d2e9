import { clip, DroverError, Notifier, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import type { EventFeed } from '../feed/index.ts';
import * as limits from '../limits.ts';
import { hasEnded, runIsOver, type SandboxRow } from '../model/index.ts';
import type { Store, Tables } from '../store/index.ts';
import { placementRequest, plan } from './plan.ts';

export interface PlacementOptions {
  readonly store: Store;
  readonly clock: Clock;
  readonly logger: Logger;
}

/** Places sandboxes on hosts (L-24). Several instances may run concurrently: the store reserves room in a conditional update. */
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

  /** Places waiting sandboxes after each change, and at least every `placementIntervalMs`, until the signal aborts. */
  async run(feed: Pick<EventFeed, 'listen'>, signal: AbortSignal): Promise<void> {
    const { clock, logger } = this.#options;
    // No other event changes a sandbox's placement or a host's room.
    const unsubscribe = feed.listen((_subject, event) => {
      if (event?.kind === 'sandbox' || event?.kind === 'host') this.#changed.notify();
    });
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

  async #round(signal: AbortSignal): Promise<void> {
    for (const row of await this.#options.store.sandboxes.unplaced(limits.placementBatch)) {
      if (signal.aborted) return;
      await this.placeNow(row.id);
    }
  }
}

/**
 * Places a sandbox that waits for placement. @returns its new row: placed, or pending with the reason
 * @param row the row as last read; if it has changed since, the reservation fails and the row is read again
 * @throws {DroverError} sandbox-not-found
 */
export async function placeSandbox(store: Pick<Tables, 'hosts' | 'sandboxes'>, row: SandboxRow): Promise<SandboxRow> {
  const { id } = row;
  let now = row;
  for (let attempt = 1; waitsForPlacement(now); attempt++) {
    const decision = plan(await store.hosts.list(), placementRequest(now));
    if (decision.kind !== 'host') {
      await store.sandboxes.setPending(id, 'unschedulable', clip(decision.message, limits.maxPendingMessageLength));
    } else if (!(await store.sandboxes.place(id, decision.hostId))) {
      if (attempt < limits.placementAttempts) {
        // Another sandbox has reserved the room, or the row has changed: plan again from a new snapshot.
        now = await mustGet(store, id);
        continue;
      }
      await store.sandboxes.setPending(id, 'contended', 'many sandboxes are being placed concurrently; placement is retried');
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

function waitsForPlacement(row: SandboxRow): boolean {
  if (row.deletedAt !== undefined || (row.desired !== 'running' && row.desired !== 'paused') || runIsOver(row)) return false;
  return row.hostId === undefined || (row.pendingReason !== '' && hasEnded(row.observed));
}
