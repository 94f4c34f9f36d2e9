import type { HostId } from '@drover/foundation';
import { isSandboxId } from '@drover/foundation';
import type { link } from '@drover/protocol';
import { hostEvent, lockSandboxes, readHost } from './change.ts';
import type { Database, Tx, StoredHost, StrayTable } from '../database/index.ts';
import { hostNameFor } from './host-name.ts';
import { applyObservations } from './observe.ts';
import { held } from './reservations.ts';
import { observedState } from './rows.ts';
import { hasEnded, type HostRow, type Room } from '../model/index.ts';
import * as limits from '../limits.ts';

/** Registers a stream of a locked host (L-7, L-8, L-11). */
export async function register(
  database: Database,
  tx: Tx,
  before: StoredHost,
  registration: link.Register,
  owner: string,
): Promise<{ readonly host: HostRow; readonly epoch: number }> {
  const id = before.id as HostId;
  const epoch = before.epoch + 1;
  const { capacity } = registration;
  await tx.db
    .updateTable('hosts')
    .set({
      name: registration.hostname === '' ? before.name : await hostNameFor(tx, id, registration.hostname, before.name),
      labels: JSON.stringify(registration.labels),
      zone: registration.zone,
      cpu_millis: capacity?.cpuMillis ?? 0,
      memory_bytes: Number(capacity?.memoryBytes ?? 0n),
      disk_bytes: Number(capacity?.diskBytes ?? 0n),
      slots: capacity?.slots ?? 0,
      runtimes: JSON.stringify(registration.runtimes),
      agent_version: registration.agentVersion,
      boot_id: registration.bootId,
      epoch,
      owner,
      connected: 1,
      down_since: null,
      down_reason: '',
      last_seen_at: tx.now,
    })
    .where('id', '=', id)
    .execute();

  await applyObservations(tx, id, await lockSandboxes(database, tx, { hostId: id }), registration.sandboxes, true);
  await rebuildReserved(database, tx, id, registration);

  const host = await readHost(tx, id);
  if (before.connected === 0) tx.emit(hostEvent(host, 'HostReady', { epoch, agentVersion: host.agentVersion, bootId: host.bootId }));
  return { host, epoch };
}

/**
 * L-8: recomputes the host's reserved room from the sandboxes that are placed on it and those that it reports, each counted once. A reported
 * copy of a sandbox that is placed elsewhere is stale, and is counted in the `strays` table until it is fenced.
 */
async function rebuildReserved(database: Database, tx: Tx, id: HostId, registration: link.Register): Promise<void> {
  const placed = await lockSandboxes(database, tx, { hostId: id });
  const placedIds = new Set(placed.map((row) => row.id));
  const staleCopies = new Map<string, StrayTable>();
  for (const seen of registration.sandboxes) {
    if (placedIds.has(seen.sandboxId) || !isSandboxId(seen.sandboxId)) continue;
    const request: Room = {
      cpuMillis: seen.resources?.cpuMillis ?? 0,
      memoryBytes: Number(seen.resources?.memoryBytes ?? 0n),
      slots: 1,
    };
    const room = held(hasEnded(observedState(seen.state)) ? 'slot' : 'all', request);
    staleCopies.set(seen.sandboxId, {
      host_id: id,
      sandbox_id: seen.sandboxId,
      cpu_millis: room.cpuMillis,
      memory_bytes: room.memoryBytes,
      slots: room.slots,
    });
  }
  await tx.db.deleteFrom('strays').where('host_id', '=', id).execute();
  const rows = [...staleCopies.values()];
  for (let i = 0; i < rows.length; i += limits.rowsPerStatement) {
    await tx.db
      .insertInto('strays')
      .values(rows.slice(i, i + limits.rowsPerStatement))
      .execute();
  }
  const used = [
    ...placed.map((row) => held(row.hold, { cpuMillis: row.cpu_millis, memoryBytes: row.memory_bytes, slots: row.slots })),
    ...rows.map((row) => ({ cpuMillis: row.cpu_millis, memoryBytes: row.memory_bytes, slots: row.slots })),
  ];
  const sum = (of: keyof Room): number => used.reduce((total, room) => total + room[of], 0);
  await tx.db
    .updateTable('hosts')
    .set({ reserved_cpu_millis: sum('cpuMillis'), reserved_memory_bytes: sum('memoryBytes'), reserved_slots: sum('slots') })
    .where('id', '=', id)
    .execute();
}
