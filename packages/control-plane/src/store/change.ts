import type { Updateable } from 'kysely';
import type { HostId, SandboxId } from '@drover/foundation';
import type { EventDraft } from '../events/index.ts';
import { type Database, type Tx, prepared, type SandboxTable, type StoredHost, type StoredSandbox } from '../database/index.ts';
import { evictIdentity } from './evict.ts';
import { moveReservation } from './reservations.ts';
import { hostRow, sandboxRow } from './rows.ts';
import { sandboxState, type HostRow, type SandboxRow } from '../model/index.ts';

type ById = { readonly id: string };

export const hostById = prepared((db, { id }: ById) => db.selectFrom('hosts').selectAll().where('id', '=', id));
const hostByIdLocked = prepared((db, { id }: ById) => db.selectFrom('hosts').selectAll().where('id', '=', id).forUpdate());
const sandboxByIdLocked = prepared((db, { id }: ById) => db.selectFrom('sandboxes').selectAll().where('id', '=', id).forUpdate());
export const sandboxById = prepared((db, { id }: ById) => db.selectFrom('sandboxes').selectAll().where('id', '=', id));

/** Locks a host's row until the transaction ends. A transaction of SQLite already holds its single write lock. */
export async function lockHost(database: Database, tx: Tx, id: string): Promise<StoredHost | undefined> {
  return (await (database.kind === 'postgres' ? hostByIdLocked : hostById)(tx.db, { id })).rows[0];
}

/** Locks the rows of sandboxes in the order of their ids. */
export async function lockSandboxes(
  database: Database,
  tx: Tx,
  which: { readonly ids: readonly string[] } | { readonly hostId: string },
): Promise<readonly StoredSandbox[]> {
  if ('ids' in which && which.ids.length === 1) {
    const [id = ''] = which.ids;
    return (await (database.kind === 'postgres' ? sandboxByIdLocked : sandboxById)(tx.db, { id })).rows;
  }
  const all = tx.db.selectFrom('sandboxes').selectAll().orderBy('id');
  const query = 'ids' in which ? all.where('id', 'in', which.ids) : all.where('host_id', '=', which.hostId).where('deleted_at', 'is', null);
  return await (database.kind === 'postgres' ? query.forUpdate() : query).execute();
}

/**
 * Locks a sandbox's row and the row of its host. Every transaction locks the host first, so the sandbox's `host_id` is read before any
 * lock is held, and verified under both locks.
 */
export async function lockSandbox(
  database: Database,
  tx: Tx,
  id: SandboxId,
): Promise<{ readonly row: StoredSandbox; readonly host: StoredHost | undefined } | undefined> {
  for (;;) {
    const before = await tx.db.selectFrom('sandboxes').select('host_id').where('id', '=', id).executeTakeFirst();
    if (before === undefined) return undefined;
    const host = before.host_id === null ? undefined : await lockHost(database, tx, before.host_id);
    const [row] = await lockSandboxes(database, tx, { ids: [id] });
    if (row === undefined) return undefined;
    if (row.host_id === before.host_id) return { row, host };
    // The sandbox moved between the two reads. Its row is now locked, so the next iteration reads the final host. Locking a second host
    // can deadlock: PostgreSQL then aborts one transaction, and `transact` retries it.
  }
}

export function sandboxEvent(row: SandboxRow, type: string, data: Readonly<Record<string, unknown>> = {}): EventDraft {
  return {
    kind: 'sandbox',
    type,
    subject: row.id,
    data: { project: row.project, name: row.name, ...(row.hostId === undefined ? {} : { hostId: row.hostId }), ...data },
  };
}

export function hostEvent(row: HostRow, type: string, data: Readonly<Record<string, unknown>> = {}): EventDraft {
  return { kind: 'host', type, subject: row.id, data: { name: row.name, ...data } };
}

/**
 * Updates a sandbox's row, moves its reservation, and emits the events of the change. No other function updates the row.
 * The caller has locked the row, and the hosts whose reservation changes.
 */
export async function changeSandbox(
  tx: Tx,
  before: StoredSandbox,
  patch: Updateable<SandboxTable>,
  options: { readonly alreadyReserved?: boolean } = {},
): Promise<StoredSandbox> {
  const after = { ...before, ...patch, updated_at: tx.now } as StoredSandbox;
  await updateSandbox(tx, before.id, { ...patch, updated_at: tx.now });
  if (options.alreadyReserved !== true) await moveReservation(tx, before, after);
  // the secrets of a deleted sandbox can never be needed again.
  if (before.deleted_at === null && after.deleted_at !== null) {
    await tx.db.deleteFrom('sandbox_secrets').where('sandbox_id', '=', before.id).execute();
    await tx.db.deleteFrom('sandbox_views').where('sandbox_id', '=', before.id).execute();
    // I-11: only a destroyed sandbox loses its identity here, not a stopped one.
    await evictIdentity(tx, before.id as SandboxId, 'destroyed');
  }
  // A copy on another host counts its starts from one, so a view of this host's starts would be taken for the new ones.
  if (before.host_id !== null && after.host_id !== before.host_id) {
    await tx.db.deleteFrom('sandbox_views').where('sandbox_id', '=', before.id).execute();
  }
  emitChange(tx, sandboxRow(before), sandboxRow(after));
  return after;
}

type RowUpdate = Updateable<SandboxTable> & { readonly rowId: string };

/** One prepared statement per set of columns. The callers of `changeSandbox` bound their number. */
const updates = new Map<string, ReturnType<typeof preparedUpdate>>();

function preparedUpdate() {
  return prepared((db, { rowId, ...values }: RowUpdate) => db.updateTable('sandboxes').set(values).where('id', '=', rowId));
}

async function updateSandbox(tx: Tx, id: string, values: Updateable<SandboxTable>): Promise<void> {
  const key = Object.keys(values).join();
  const update = updates.get(key) ?? preparedUpdate();
  updates.set(key, update);
  await update(tx.db, { ...values, rowId: id });
}

/** Emits an event for each change of the displayed state, the network cut or the registration port. */
export function emitChange(tx: Tx, before: SandboxRow, after: SandboxRow): void {
  const [was, is] = [sandboxState(before), sandboxState(after)];
  if (was.state !== is.state) {
    const host = after.hostId ?? before.hostId;
    tx.emit(
      sandboxEvent(after, 'SandboxStateChanged', {
        from: was.state,
        to: is.state,
        reason: is.reason,
        message: is.message,
        ...(is.hint !== '' && { hint: is.hint }),
        ...(host === undefined ? {} : { hostId: host }),
        ...(after.exitCode === undefined ? {} : { exitCode: after.exitCode }),
      }),
    );
  }
  if (before.observedNetworkCut !== after.observedNetworkCut) {
    tx.emit(sandboxEvent(after, after.observedNetworkCut ? 'SandboxNetworkCut' : 'SandboxNetworkRestored'));
  }
  if (before.observedRegistrationClosed !== after.observedRegistrationClosed) {
    tx.emit(sandboxEvent(after, after.observedRegistrationClosed ? 'SandboxRegistrationClosed' : 'SandboxRegistrationOpened'));
  }
}

export async function readHost(tx: Tx, id: HostId): Promise<HostRow> {
  return hostRow(await tx.db.selectFrom('hosts').selectAll().where('id', '=', id).executeTakeFirstOrThrow());
}
