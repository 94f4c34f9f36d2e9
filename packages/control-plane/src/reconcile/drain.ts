import { DroverError, type Clock, type HostId } from '@drover/foundation';
import * as limits from '../limits.ts';
import { placementRequest, plan, type Placement } from '../placement/index.ts';
import { hasEnded, runIsOver, type SandboxRow } from '../model/index.ts';
import type { Store } from '../store/index.ts';

export interface DrainOptions {
  readonly store: Store;
  readonly placement: Placement;
  readonly clock: Clock;
  readonly hostId: HostId;
  /** Stops the sandboxes that no other host has room for; otherwise they stay. */
  readonly stop: boolean;
}

export interface DrainProgress {
  /** How many sandboxes ran on the host when the drain began. */
  readonly total: number;
  /** How many of them are still there. */
  readonly remaining: number;
  readonly message: string;
  readonly done: boolean;
}

/**
 * L-27: moves the running sandboxes off a host. No new sandbox is placed on the host until it is uncordoned.
 *
 * A sandbox moves by being created again on another host: its command restarts, and its files are removed with the old copy. A sandbox that
 * no other host has room for is stopped, or stays and is named in the progress. A sandbox that has ended stays: its files are only here.
 * The generator ends with `done` when no sandbox can move any more. If it is abandoned, the host stays draining, and a second call continues.
 * @throws {DroverError} host-not-found, host-removed; conflict when another request ends the drain
 */
export async function* drainHost(options: DrainOptions, signal: AbortSignal): AsyncGenerator<DrainProgress, void, undefined> {
  const { store, placement, clock, hostId, stop } = options;
  await store.hosts.setScheduling(hostId, 'draining');
  const first = (await store.sandboxes.onHost(hostId)).filter(runs);
  const total = first.length;
  let lastLine = '';
  const progress = (remaining: number, message: string, done: boolean): DrainProgress[] => {
    const line = `${remaining} ${message}`;
    if (line === lastLine && !done) return [];
    lastLine = line;
    return [{ total, remaining, message, done }];
  };
  yield* progress(
    total,
    total === 0 ? 'no sandbox runs on it' : `${total} to move; each is created again on another host, without its files`,
    total === 0,
  );

  while (lastLine !== '' && total > 0) {
    signal.throwIfAborted();
    await mustDrain(store, hostId);
    const left: SandboxRow[] = [];
    for (const row of (await store.sandboxes.onHost(hostId)).filter(runs)) {
      // A stop or deletion is already requested; the host reports its end.
      if (row.desired === 'stopped' || row.desired === 'deleted') continue;
      const moved = await move(options, row);
      if (moved) yield* progress(await remainingOn(store, hostId), `${row.name} moves to another host`, false);
      else if (stop) await store.sandboxes.setDesired(row.id, 'stopped', { cause: 'drain' });
      else left.push(row);
      if (moved) await placement.placeNow(row.id);
    }
    const remaining = await remainingOn(store, hostId);
    if (remaining === left.length) {
      const names = left.map((row) => row.name).join(', ');
      yield* progress(
        remaining,
        remaining === 0 ? 'no sandbox runs on it any more' : `no other host takes ${names}: there is no room, or it is contained`,
        true,
      );
      return;
    }
    yield* progress(remaining, 'waiting for what is stopping', false);
    await clock.sleep(limits.drainPollMs, signal);
  }
}

/** An uncordon ends the drain: the remaining sandboxes stay on the host. @throws {DroverError} conflict, host-removed */
async function mustDrain(store: Store, hostId: HostId): Promise<void> {
  const host = await store.hosts.get(hostId);
  if (host === undefined || host.removedAt !== undefined) throw new DroverError('host-removed', 'the host was removed while it drained');
  if (host.scheduling === 'draining') return;
  const now = host.scheduling === 'open' ? 'uncordoned' : 'cordoned without a drain';
  throw new DroverError('conflict', `host ${host.name} was ${now} while it drained; what is left on it stays there`, {
    hint: `\`drover host drain ${host.name}\` continues`,
  });
}

/** Unplaces the sandbox if another host has room for it now. @returns whether it was unplaced */
async function move({ store, hostId }: DrainOptions, row: SandboxRow): Promise<boolean> {
  const { onHost: _, ...elsewhere } = placementRequest(row);
  const others = (await store.hosts.list()).filter((host) => host.id !== hostId);
  if (plan(others, elsewhere).kind !== 'host') return false;
  return await store.sandboxes.unplace(row.id, hostId, 'draining');
}

async function remainingOn(store: Store, hostId: HostId): Promise<number> {
  return (await store.sandboxes.onHost(hostId)).filter(runs).length;
}

/** Whether the sandbox runs, or is about to. */
function runs(row: SandboxRow): boolean {
  return !runIsOver(row) && !(row.desired === 'stopped' && hasEnded(row.observed));
}
