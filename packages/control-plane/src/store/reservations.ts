import { sql } from 'kysely';
import type { HostId, SandboxId } from '@drover/foundation';
import { type Tx, prepared, type Hold, type StoredSandbox } from '../database/index.ts';
import type { Room } from '../model/index.ts';

/** The room that a sandbox reserves on its host (L-8): its whole request while it may run, one slot while only its files remain. */
export function held(hold: Hold, request: Room): Room {
  if (hold === 'all') return request;
  return { cpuMillis: 0, memoryBytes: 0, slots: hold === 'slot' ? request.slots : 0 };
}

function heldBy(row: StoredSandbox): Room {
  return held(row.hold, { cpuMillis: row.cpu_millis, memoryBytes: row.memory_bytes, slots: row.slots });
}

/** Releases the room that a sandbox reserved before a change of its row, and reserves the room that it needs afterwards. */
export async function moveReservation(tx: Tx, before: StoredSandbox, after: StoredSandbox): Promise<void> {
  if (before.host_id === after.host_id && before.hold === after.hold) return;
  if (before.host_id !== null) await addReservation(tx, before.host_id as HostId, heldBy(before), -1);
  if (after.host_id !== null) await addReservation(tx, after.host_id as HostId, heldBy(after), 1);
}

/** Adds to (`sign` 1) or subtracts from (`sign` -1) the reserved room of a host; never below zero (L-8). */
async function addReservation(tx: Tx, id: HostId, room: Room, sign: 1 | -1): Promise<void> {
  if (room.cpuMillis === 0 && room.memoryBytes === 0 && room.slots === 0) return;
  const plus = (column: 'reserved_cpu_millis' | 'reserved_memory_bytes' | 'reserved_slots', amount: number) =>
    sql<number>`case when ${sql.ref(column)} + ${sign * amount} > 0 then ${sql.ref(column)} + ${sign * amount} else 0 end`;
  await tx.db
    .updateTable('hosts')
    .set({
      reserved_cpu_millis: plus('reserved_cpu_millis', room.cpuMillis),
      reserved_memory_bytes: plus('reserved_memory_bytes', room.memoryBytes),
      reserved_slots: plus('reserved_slots', room.slots),
    })
    .where('id', '=', id)
    .execute();
}

/**
 * L-24: reserves the room in one conditional update.
 * @param again the sandbox is already placed on the host, and starts there again
 * @returns false if the room is not free: nothing is reserved
 */
export async function reserve(tx: Tx, row: StoredSandbox, hostId: HostId, again: boolean): Promise<boolean> {
  const slots = again && row.hold === 'slot' ? 0 : row.slots;
  const result = await (again ? reserveForRestart : reserveForNew)(tx.db, { hostId, cpu: row.cpu_millis, memory: row.memory_bytes, slots });
  return result.numAffectedRows === 1n;
}

const reserveForNew = reservation(['open']);
// L-27: a cordon keeps new sandboxes off the host, but a sandbox whose files are there may start again.
const reserveForRestart = reservation(['open', 'cordoned']);

function reservation(scheduling: readonly string[]) {
  type Amounts = { readonly hostId: string; readonly cpu: number; readonly memory: number; readonly slots: number };
  return prepared((db, { hostId, cpu, memory, slots }: Amounts) =>
    db
      .updateTable('hosts')
      .set((eb) => ({
        reserved_cpu_millis: eb('reserved_cpu_millis', '+', cpu),
        reserved_memory_bytes: eb('reserved_memory_bytes', '+', memory),
        reserved_slots: eb('reserved_slots', '+', slots),
      }))
      .where('id', '=', hostId)
      .where('connected', '=', 1)
      .where('removed_at', 'is', null)
      .where('scheduling', 'in', scheduling)
      .where((eb) => eb(eb('reserved_cpu_millis', '+', cpu), '<=', eb.ref('cpu_millis')))
      .where((eb) => eb(eb('reserved_memory_bytes', '+', memory), '<=', eb.ref('memory_bytes')))
      .where((eb) => eb(eb('reserved_slots', '+', slots), '<=', eb.ref('slots'))),
  );
}

/** Keeps the room of a stale copy reserved, from the move of its sandbox until the copy is fenced. */
export async function addStaleCopy(tx: Tx, row: StoredSandbox, hostId: HostId): Promise<void> {
  const room = { cpuMillis: row.cpu_millis, memoryBytes: row.memory_bytes, slots: row.slots };
  const values = { cpu_millis: room.cpuMillis, memory_bytes: room.memoryBytes, slots: room.slots };
  await dropStaleCopy(tx, row.id as SandboxId, hostId);
  await tx.db
    .insertInto('strays')
    .values({ host_id: hostId, sandbox_id: row.id, ...values })
    .execute();
  await addReservation(tx, hostId, room, 1);
}

export async function dropStaleCopy(tx: Tx, id: SandboxId, hostId: HostId): Promise<void> {
  const copy = await tx.db
    .deleteFrom('strays')
    .where('host_id', '=', hostId)
    .where('sandbox_id', '=', id)
    .returningAll()
    .executeTakeFirst();
  if (copy === undefined) return;
  await addReservation(tx, hostId, { cpuMillis: copy.cpu_millis, memoryBytes: copy.memory_bytes, slots: copy.slots }, -1);
}
