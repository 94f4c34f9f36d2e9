import { clip, DroverError, type HostId, type SandboxId } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import * as limits from '../limits.ts';
import { changeSandbox, emitChange, lockHost, lockSandbox, lockSandboxes, sandboxEvent } from './change.ts';
import { isUniqueViolation, type Tx, prepared, type StoredSandbox } from '../database/index.ts';
import {
  mayNotRun,
  refuseContained,
  hasEnded,
  runIsOver,
  startOf,
  type ContainmentAction,
  type ContainmentRecord,
  type DesiredState,
  type SandboxRow,
  type EndReason,
} from '../model/index.ts';
import { desiredPatch } from './desired.ts';
import { absentPatch } from './absent.ts';
import { applyObservations, removesItself } from './observe.ts';
import { newSandbox } from './new-sandbox.ts';
import { addStaleCopy, dropStaleCopy, reserve } from './reservations.ts';
import { rowWithSpec, sandboxRow } from './rows.ts';
import { SandboxQueries, sandboxNotFound } from './sandbox-queries.ts';
import type { DesiredOptions, SandboxDraft } from './drafts.ts';

const insertSandbox = prepared((db, row: StoredSandbox) => db.insertInto('sandboxes').values(row));

export class SandboxStore extends SandboxQueries {
  async create(draft: SandboxDraft, place?: HostId | { readonly unschedulable: string }): Promise<SandboxRow> {
    const hostId = typeof place === 'string' ? place : undefined;
    const waitsFor = typeof place === 'object' ? clip(place.unschedulable, limits.maxPendingMessageLength) : '';
    try {
      return await this.database.transact(async (tx) => {
        const unplaced = newSandbox(draft, tx.now);
        const placed = hostId !== undefined && (await reserve(tx, unplaced, hostId, false));
        const pending = waitsFor === '' ? {} : { pending_reason: 'unschedulable', pending_message: waitsFor };
        const stored: StoredSandbox = placed ? { ...unplaced, host_id: hostId, hold: 'all' } : { ...unplaced, ...pending };
        await insertSandbox(tx.db, stored);
        const labels = Object.entries(draft.labels).map(([key, value]) => ({ sandbox_id: draft.id, key, value }));
        if (labels.length > 0) await tx.db.insertInto('sandbox_labels').values(labels).execute();
        const secrets = (draft.secrets ?? []).map(({ name, sealed }) => ({ sandbox_id: draft.id, name, sealed }));
        if (secrets.length > 0) await tx.db.insertInto('sandbox_secrets').values(secrets).execute();
        const created = rowWithSpec(unplaced, draft.spec);
        tx.emit(sandboxEvent(created, 'SandboxCreated', { image: draft.spec.image, labels: draft.labels }));
        const row = rowWithSpec(stored, draft.spec);
        if (waitsFor !== '') tx.emit(sandboxEvent(row, 'SandboxUnschedulable', { reason: 'unschedulable', message: waitsFor }));
        if (!placed) return row;
        emitChange(tx, created, row);
        tx.emit(sandboxEvent(row, 'SandboxScheduled'));
        return row;
      });
    } catch (error) {
      if (!isUniqueViolation(error)) throw error;
      throw new DroverError('name-taken', `there is a sandbox named ${draft.name} already`, {
        hint: `choose another name, or remove it with \`drover sandbox rm ${draft.name}\``,
        cause: error,
      });
    }
  }

  /** Places the sandbox if the host has room (L-24). Returns false if it has none, or if the sandbox no longer waits for placement. */
  async place(id: SandboxId, hostId: HostId): Promise<boolean> {
    return await this.database.transact(async (tx) => {
      if ((await lockHost(this.database, tx, hostId)) === undefined) return false;
      const [row] = await lockSandboxes(this.database, tx, { ids: [id] });
      if (row === undefined || row.deleted_at !== null || row.desired === 'deleted' || row.desired === 'stopped') return false;
      const again = row.host_id === hostId && row.pending_reason !== '' && row.hold !== 'all';
      if (!again && row.host_id !== null) return false;
      if (!(await reserve(tx, row, hostId, again))) return false;
      const after = await changeSandbox(
        tx,
        row,
        { host_id: hostId, hold: 'all', pending_reason: '', pending_message: '' },
        { alreadyReserved: true },
      );
      tx.emit(sandboxEvent(sandboxRow(after), 'SandboxScheduled'));
      return true;
    });
  }

  async setPending(id: SandboxId, reason: string, message: string): Promise<void> {
    await this.database.transact(async (tx) => {
      const found = await lockSandbox(this.database, tx, id);
      if (found === undefined) return;
      const { row } = found;
      const waits = row.host_id === null || row.pending_reason !== '';
      if (row.deleted_at !== null || !waits || row.desired === 'deleted' || row.desired === 'stopped') return;
      if (row.pending_reason === reason && row.pending_message === message) return;
      const after = await changeSandbox(tx, row, { pending_reason: reason, pending_message: message });
      // No event for a message that differs only in the free amounts.
      if (row.pending_reason !== reason) tx.emit(sandboxEvent(sandboxRow(after), 'SandboxUnschedulable', { reason, message }));
    });
  }

  /**
   * Unplaces a running sandbox (drain); the next reconcile fences the host's copy. Returns false when the sandbox is no longer placed on
   * `from`, has ended or is to end, or is contained by a pause or a kill (I-4).
   */
  async unplace(id: SandboxId, from: HostId, reason: string): Promise<boolean> {
    return await this.database.transact(async (tx) => {
      await lockHost(this.database, tx, from);
      const [row] = await lockSandboxes(this.database, tx, { ids: [id] });
      if (row === undefined || row.host_id !== from || row.deleted_at !== null) return false;
      if (row.desired === 'deleted' || row.desired === 'stopped' || runIsOver(sandboxRow(row))) return false;
      // I-4: a move would destroy the evidence of a contained sandbox. Checked under the lock, so that no containment can intervene.
      if (mayNotRun(sandboxRow(row))) return false;
      const generation = row.generation + 1;
      if (row.observed !== null) await addStaleCopy(tx, row, from);
      await changeSandbox(tx, row, {
        host_id: null,
        hold: 'nothing',
        generation,
        // A new start on another host: all earlier copies are stale, on every host (L-26).
        start_generation: generation,
        placed_generation: generation,
        observed: null,
        observed_sequence: 0,
        address: '',
        started_at: null,
        lost_since: null,
        pending_reason: reason,
        pending_message: `it was taken off its host (${reason}) and waits for another`,
      });
      return true;
    });
  }

  /**
   * Changes the desired state. A repeated request changes nothing, except that a kill or a shorter grace shortens a stop under way, and
   * `running` starts a sandbox whose run has ended. A sandbox without a host is deleted immediately.
   * @throws {DroverError} sandbox-not-found; sandbox-not-running for a pause of a sandbox that has ended; failed-precondition for `running`
   *   while a pause or a kill contains it (I-4), or when it is being deleted
   */
  async setDesired(id: SandboxId, desired: DesiredState, options: DesiredOptions = {}): Promise<SandboxRow> {
    return await this.database.transact(async (tx) => {
      const found = await lockSandbox(this.database, tx, id);
      if (found === undefined) throw sandboxNotFound(id);
      const { row, host } = found;
      if (row.deleted_at !== null) {
        if (desired === 'deleted') return sandboxRow(row);
        throw new DroverError('sandbox-not-found', `${row.name} was deleted`, { hint: 'create a new sandbox' });
      }
      if (options.when?.(sandboxRow(row)) === false) return sandboxRow(row);
      if (desired === 'running') refuseContained(sandboxRow(row));
      const patch = desiredPatch(row, host, desired, tx.now, options);
      if (patch === undefined) return sandboxRow(row);
      const after = sandboxRow(await changeSandbox(tx, row, patch));
      // Wakes the replica that holds the host's link: the desired state changed, even if the displayed state did not.
      const data = { desired, generation: after.generation, ...(options.by === undefined ? {} : { by: options.by }) };
      tx.emit(sandboxEvent(after, 'SandboxDesiredChanged', data));
      if (after.deletedAt !== undefined) tx.emit(sandboxEvent(after, 'SandboxDeleted'));
      return after;
    });
  }

  /** Stores a host's observations. Older sequences, and sandboxes that are not placed there, are ignored. @returns the changed rows */
  async observe(hostId: HostId, epoch: number, observations: readonly sandbox.SandboxObservation[]): Promise<readonly SandboxRow[]> {
    if (observations.length === 0) return [];
    return await this.database.transact(async (tx) => {
      const host = await lockHost(this.database, tx, hostId);
      // L-11: observations of a superseded stream are dropped.
      if (host === undefined || host.epoch !== epoch || host.removed_at !== null) return [];
      const ids = [...new Set(observations.map((seen) => seen.sandboxId))];
      const rows = await lockSandboxes(this.database, tx, { ids });
      return (await applyObservations(tx, hostId, rows, observations, false)).map(sandboxRow);
    });
  }

  /** Records that the host holds no copy (`absentPatch`): a sandbox that was to be deleted now is. Releases the reservation. */
  async copyAbsent(id: SandboxId, hostId: HostId): Promise<SandboxRow | undefined> {
    return await this.database.transact(async (tx) => {
      await lockHost(this.database, tx, hostId);
      await dropStaleCopy(tx, id, hostId);
      const [row] = await lockSandboxes(this.database, tx, { ids: [id] });
      if (row === undefined || row.host_id !== hostId || row.deleted_at !== null) return undefined;
      const after = sandboxRow(await changeSandbox(tx, row, absentPatch(row, tx.now)));
      if (after.deletedAt !== undefined) tx.emit(sandboxEvent(after, 'SandboxDeleted'));
      return after;
    });
  }

  /** Gives up the newest start of a sandbox. */
  async fail(id: SandboxId, why: EndReason): Promise<void> {
    await this.database.transact(async (tx) => {
      const found = await lockSandbox(this.database, tx, id);
      if (found === undefined || found.row.deleted_at !== null) return;
      await fail(tx, found.row, why);
    });
  }

  /**
   * As `fail`, with the reason `init-failed`, for one start (`startOf`). Returns false, without effect, when the host reports another start or
   * the end of this one, or when another start is requested.
   */
  async failInit(id: SandboxId, startCount: number, message: string): Promise<boolean> {
    return await this.database.transact(async (tx) => {
      const found = await lockSandbox(this.database, tx, id);
      if (found === undefined || found.row.deleted_at !== null) return false;
      const row = sandboxRow(found.row);
      const another = startOf(row) !== startCount || row.observedGeneration < row.startGeneration;
      if (another || row.observed === undefined || hasEnded(row.observed)) return false;
      await fail(tx, found.row, { reason: 'init-failed', message, hint: '' });
      return true;
    });
  }

  /** Sets whether the sandbox's network is to be cut (I-4). A repeated call changes nothing. */
  async setNetworkCut(id: SandboxId, cut: boolean): Promise<SandboxRow> {
    return await this.database.transact(async (tx) => {
      const [row] = await lockSandboxes(this.database, tx, { ids: [id] });
      if (row === undefined || row.deleted_at !== null) throw sandboxNotFound(id);
      if ((row.network_cut === 1) === cut) return sandboxRow(row);
      // The reservation does not change, so the host is not locked.
      const after = sandboxRow(await changeSandbox(tx, row, { network_cut: cut ? 1 : 0, generation: row.generation + 1 }));
      tx.emit(sandboxEvent(after, 'SandboxDesiredChanged', { networkCut: cut, generation: after.generation }));
      return after;
    });
  }

  /**
   * Records a containment, or deletes its record if `by` is undefined. A repeated containment replaces only the reason, and only by a
   * non-empty one.
   */
  async setContainment(id: SandboxId, action: ContainmentAction, by: ContainmentRecord | undefined): Promise<SandboxRow> {
    return await this.database.transact(async (tx) => {
      const [stored] = await lockSandboxes(this.database, tx, { ids: [id] });
      if (stored === undefined || stored.deleted_at !== null) throw sandboxNotFound(id);
      const row = sandboxRow(stored);
      const before = row.containment[action];
      const { [action]: _, ...others } = row.containment;
      const record = by === undefined || before === undefined ? by : { ...before, reason: by.reason === '' ? before.reason : by.reason };
      if (record?.reason === before?.reason && (record === undefined) === (before === undefined)) return row;
      const containment = JSON.stringify(record === undefined ? others : { ...others, [action]: record });
      // The new generation makes the host's loop plan again.
      const after = sandboxRow(await changeSandbox(tx, stored, { containment, generation: stored.generation + 1 }));
      const data = record === undefined ? { action } : { action, by: record.by, reason: record.reason };
      tx.emit(sandboxEvent(after, record === undefined ? 'SandboxReleased' : 'SandboxContained', data));
      return after;
    });
  }

  /** Marks the sandboxes of hosts that have been down since `downBefore` as lost (L-26). @returns the sandboxes newly lost */
  async markLost(downBefore: number): Promise<readonly SandboxRow[]> {
    const hosts = await this.database.db
      .selectFrom('hosts')
      .select('id')
      .where('connected', '=', 0)
      .where('removed_at', 'is', null)
      .where('down_since', '<=', downBefore)
      .where((eb) =>
        eb.exists(
          eb
            .selectFrom('sandboxes')
            .select('sandboxes.id')
            .whereRef('sandboxes.host_id', '=', 'hosts.id')
            .where('sandboxes.deleted_at', 'is', null)
            .where('sandboxes.lost_since', 'is', null)
            .where('sandboxes.desired', 'in', ['running', 'paused', 'stopped']),
        ),
      )
      .execute();
    const lost: SandboxRow[] = [];
    for (const host of hosts) lost.push(...(await this.#loseHost(host.id as HostId, downBefore)));
    return lost;
  }

  /**
   * Drops a batch of deleted sandboxes: those deleted before `deletedBefore`, and all but the `keep` that were deleted last.
   * @returns the number of dropped sandboxes
   */
  async trimDeleted(deletedBefore: number, keep: number): Promise<number> {
    return await this.database.transact(async (tx) => {
      const deleted = tx.db.selectFrom('sandboxes').where('deleted_at', 'is not', null);
      const kept = await deleted.select('deleted_at').orderBy('deleted_at', 'desc').offset(keep).limit(1).executeTakeFirst();
      const until = Math.max(deletedBefore - 1, kept?.deleted_at ?? 0);
      const old = await deleted
        .select('id')
        .where('deleted_at', '<=', until)
        .orderBy('deleted_at')
        .limit(limits.rowsPerStatement)
        .execute();
      const ids = old.map((row) => row.id);
      if (ids.length === 0) return 0;
      await tx.db.deleteFrom('sandbox_secrets').where('sandbox_id', 'in', ids).execute();
      await tx.db.deleteFrom('sandbox_labels').where('sandbox_id', 'in', ids).execute();
      await tx.db.deleteFrom('volume_uses').where('sandbox_id', 'in', ids).execute();
      await tx.db.deleteFrom('sandboxes').where('id', 'in', ids).execute();
      return ids.length;
    });
  }

  async #loseHost(hostId: HostId, downBefore: number): Promise<readonly SandboxRow[]> {
    return await this.database.transact(async (tx) => {
      const host = await lockHost(this.database, tx, hostId);
      if (host === undefined || host.connected === 1 || host.down_since === null || host.down_since > downBefore) return [];
      const lost: SandboxRow[] = [];
      for (const row of await lockSandboxes(this.database, tx, { hostId })) {
        // A sandbox that has ended is not lost with its host: nothing of it runs, and its end is known.
        if (row.lost_since !== null || row.desired === 'deleted' || hasEnded(sandboxRow(row).observed)) continue;
        const after = sandboxRow(await changeSandbox(tx, row, { lost_since: tx.now }));
        tx.emit(sandboxEvent(after, 'SandboxLost', { reason: 'host-down', hostDownSince: host.down_since }));
        lost.push(after);
      }
      return lost;
    });
  }
}

/** Gives up the newest start of a sandbox that is not deleted. */
async function fail(tx: Tx, row: StoredSandbox, why: EndReason): Promise<void> {
  const running = row.observed !== null && !hasEnded(sandboxRow(row).observed);
  const removed = removesItself(row);
  const deleted = row.host_id === null && (removed || row.desired === 'deleted');
  const after = await changeSandbox(tx, row, {
    observed: 'failed',
    observed_generation: row.generation,
    given_up_generation: row.generation,
    ...why,
    finished_at: tx.now,
    pending_reason: '',
    pending_message: '',
    // A copy that still runs keeps its reservation until its host has stopped it.
    hold: row.host_id === null ? 'nothing' : running ? 'all' : 'slot',
    ...(removed ? { desired: 'deleted', generation: row.generation + 1 } : {}),
    ...(deleted ? { deleted_at: tx.now } : {}),
  });
  if (deleted) tx.emit(sandboxEvent(sandboxRow(after), 'SandboxDeleted'));
}
