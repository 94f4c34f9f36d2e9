import { sql } from 'kysely';
import { counted, clip, DroverError, isHostId, type HostId } from '@drover/foundation';
import type { link } from '@drover/protocol';
import * as limits from '../limits.ts';
import { changeSandbox, hostById, hostEvent, lockHost, lockSandboxes, readHost, sandboxEvent } from './change.ts';
import { type Database, type Tx, prepared, type StoredHost } from '../database/index.ts';
import { hostNameFor } from './host-name.ts';
import { register } from './register.ts';
import { hostRow, sandboxRow } from './rows.ts';
import type { HostRow } from '../model/index.ts';

export function hostNotFound(reference: string): DroverError {
  return new DroverError('host-not-found', `there is no host ${JSON.stringify(clip(reference))}`, {
    hint: '`drover host ls` lists the hosts',
  });
}

const everyHost = prepared((db) => db.selectFrom('hosts').selectAll().orderBy('name').orderBy('id'));
const presentHosts = prepared((db) => db.selectFrom('hosts').selectAll().where('removed_at', 'is', null).orderBy('name').orderBy('id'));

export interface NewHost {
  readonly id: HostId;
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly certificateExpiresAt: number;
}

export interface Heartbeat {
  readonly id: HostId;
  readonly epoch: number;
  readonly at: number;
  readonly loadMilli: number;
  readonly memoryAvailableBytes: number;
  readonly diskAvailableBytes: number;
}

export class HostStore {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /** Inserts the host's row, or updates it in place (L-7). @throws {DroverError} host-removed */
  async join(host: NewHost): Promise<HostRow> {
    return await this.#database.transact(async (tx) => {
      const name = await hostNameFor(tx, host.id, host.name);
      const inserted = await tx.db
        .insertInto('hosts')
        .values(newHost({ ...host, name }, tx.now))
        .onConflict((conflict) => conflict.column('id').doNothing())
        .returning('id')
        .executeTakeFirst();
      if (inserted === undefined) {
        await this.#lockPresent(tx, host.id);
        await tx.db
          .updateTable('hosts')
          .set({ name, join_labels: JSON.stringify(host.labels), certificate_expires_at: host.certificateExpiresAt })
          .where('id', '=', host.id)
          .execute();
      }
      const row = await readHost(tx, host.id);
      if (inserted !== undefined) tx.emit(hostEvent(row, 'HostJoined', { labels: row.labels }));
      return row;
    });
  }

  /**
   * Registers a stream of the host (L-8, L-11): raises the epoch, marks the host connected, and stores what the host reports about itself and
   * its sandboxes. Recomputes `reserved` from the sandboxes that are placed on the host and those that it reports, each counted once.
   * @throws {DroverError} host-removed, host-not-found
   */
  async register(registration: link.Register, owner: string): Promise<{ readonly host: HostRow; readonly epoch: number }> {
    return await this.#database.transact(async (tx) => {
      const before = await this.#lockPresent(tx, registration.hostId);
      return await register(this.#database, tx, before, registration, owner);
    });
  }

  /** Marks the host down if `epoch` is still the newest (L-11). @returns whether `epoch` is the newest */
  async markDown(id: HostId, epoch: number, reason: string): Promise<boolean> {
    return await this.#database.transact(async (tx) => {
      const before = await lockHost(this.#database, tx, id);
      // L-11: a superseded stream's cleanup has an older epoch and does nothing.
      if (before === undefined || before.epoch !== epoch || before.removed_at !== null) return false;
      if (before.connected === 1) await this.#down(tx, before, reason);
      return true;
    });
  }

  /** Stores heartbeats (L-9). A heartbeat of an older epoch has no effect. A host that was marked down for its silence becomes ready again. */
  async heartbeats(beats: readonly Heartbeat[]): Promise<void> {
    for (let i = 0; i < beats.length; i += limits.rowsPerStatement) {
      await this.#heartbeats(beats.slice(i, i + limits.rowsPerStatement));
    }
  }

  /** Called when a replica starts: marks down the hosts whose streams it held before. @returns the number of hosts marked down */
  async markOwnedDown(owner: string): Promise<number> {
    const owned = await this.#database.db
      .selectFrom('hosts')
      .select(['id', 'epoch'])
      .where('owner', '=', owner)
      .where('connected', '=', 1)
      .orderBy('id')
      .execute();
    let count = 0;
    // Many hosts share one transaction, because each commit waits for the disk.
    for (let i = 0; i < owned.length; i += limits.rowsPerStatement) {
      count += await this.#database.transact(async (tx) => {
        let down = 0;
        for (const { id, epoch } of owned.slice(i, i + limits.rowsPerStatement)) {
          const before = await lockHost(this.#database, tx, id);
          if (before === undefined || before.epoch !== epoch || before.removed_at !== null || before.connected === 0) continue;
          await this.#down(tx, before, 'its control plane was restarted');
          down++;
        }
        return down;
      });
    }
    return count;
  }

  async get(id: HostId): Promise<HostRow | undefined> {
    const [row] = (await hostById(this.#database.db, { id })).rows;
    return row === undefined ? undefined : hostRow(row);
  }

  /** Finds a host by id, or by name among those not removed. @throws {DroverError} host-not-found; invalid-argument for an ambiguous name */
  async find(idOrName: string): Promise<HostRow> {
    if (isHostId(idOrName)) {
      const row = await this.get(idOrName);
      if (row === undefined) throw hostNotFound(idOrName);
      return row;
    }
    const rows = await this.#database.db
      .selectFrom('hosts')
      .selectAll()
      .where('name', '=', idOrName)
      .where('removed_at', 'is', null)
      .limit(2)
      .execute();
    const [first, second] = rows;
    if (first === undefined) throw hostNotFound(idOrName);
    if (second !== undefined) {
      throw new DroverError('invalid-argument', `more than one host is named ${JSON.stringify(clip(idOrName))}`, {
        hint: 'use its id; `drover host ls` shows the ids',
      });
    }
    return hostRow(first);
  }

  async list(options: { readonly includeRemoved?: boolean } = {}): Promise<readonly HostRow[]> {
    return (await (options.includeRemoved === true ? everyHost : presentHosts)(this.#database.db, {})).rows.map(hostRow);
  }

  async setScheduling(id: HostId, scheduling: HostRow['scheduling']): Promise<HostRow> {
    return await this.#database.transact(async (tx) => {
      const before = await this.#lockPresent(tx, id);
      if (before.scheduling === scheduling) return hostRow(before);
      await tx.db.updateTable('hosts').set({ scheduling }).where('id', '=', id).execute();
      const row = await readHost(tx, id);
      const type = { open: 'HostUncordoned', cordoned: 'HostCordoned', draining: 'HostDraining' }[scheduling];
      tx.emit(hostEvent(row, type));
      return row;
    });
  }

  /** Removes the host (L-4). With `force`, its sandboxes become lost. @throws {DroverError} host-not-found; host-not-empty without `force` */
  async remove(id: HostId, options: { readonly force: boolean }): Promise<HostRow> {
    return await this.#database.transact(async (tx) => {
      const before = await lockHost(this.#database, tx, id);
      if (before === undefined) throw hostNotFound(id);
      if (before.removed_at !== null) return hostRow(before);
      const sandboxes = await lockSandboxes(this.#database, tx, { hostId: id });
      if (sandboxes.length > 0 && !options.force) {
        const names = sandboxes.slice(0, limits.maxNamedHosts).map(({ project, name }) => (project === '' ? name : `${project}/${name}`));
        const more = sandboxes.length > names.length ? ` and ${sandboxes.length - names.length} more` : '';
        throw new DroverError(
          'host-not-empty',
          `${before.name} still holds ${counted(sandboxes.length, 'sandbox')}: ${names.join(', ')}${more}`,
          {
            hint: 'move running sandboxes with `drover host drain` and remove stopped ones; with --force, all of them are lost',
          },
        );
      }
      for (const row of sandboxes) {
        // A removed host never reports the end of a deletion.
        if (row.desired === 'deleted') {
          const after = await changeSandbox(tx, row, { deleted_at: tx.now, hold: 'nothing' });
          tx.emit(sandboxEvent(sandboxRow(after), 'SandboxDeleted'));
        } else if (row.lost_since === null) {
          const after = await changeSandbox(tx, row, { lost_since: tx.now });
          tx.emit(sandboxEvent(sandboxRow(after), 'SandboxLost', { reason: 'host-removed' }));
        }
      }
      await tx.db
        .updateTable('hosts')
        .set({ removed_at: tx.now, connected: 0, down_since: before.down_since ?? tx.now, down_reason: 'it was removed' })
        .where('id', '=', id)
        .execute();
      const row = await readHost(tx, id);
      tx.emit(hostEvent(row, 'HostRemoved', { force: options.force }));
      return row;
    });
  }

  async certificateRenewed(id: HostId, expiresAt: number): Promise<void> {
    await this.#database.db.updateTable('hosts').set({ certificate_expires_at: expiresAt }).where('id', '=', id).execute();
  }

  async #lockPresent(tx: Tx, id: string): Promise<StoredHost> {
    const row = await lockHost(this.#database, tx, id);
    if (row === undefined) throw hostNotFound(id);
    // L-4: a removed host can never join or register again.
    if (row.removed_at !== null) {
      throw new DroverError('host-removed', `the host ${row.name} was removed`, {
        hint: 'delete its state directory and join it again with a new token',
      });
    }
    return row;
  }

  async #down(tx: Tx, before: StoredHost, reason: string): Promise<void> {
    await tx.db.updateTable('hosts').set({ connected: 0, down_since: tx.now, down_reason: reason }).where('id', '=', before.id).execute();
    tx.emit(hostEvent(await readHost(tx, before.id as HostId), 'HostDown', { reason, epoch: before.epoch }));
  }

  /**
   * Updates all hosts in two statements (L-9). A heartbeat counts only in the newest epoch. A heartbeat that was still in a batch when its host
   * was marked down does not make the host ready again.
   */
  async #heartbeats(beats: readonly Heartbeat[]): Promise<void> {
    const newest = [...new Map(beats.map((beat) => [beat.id, beat])).values()].sort((a, b) => (a.id < b.id ? -1 : 1));
    if (newest.length === 0) return;
    const values = sql.join(
      newest.map(
        (b) =>
          sql`(${b.id}, cast(${b.epoch} as bigint), cast(${b.at} as bigint), cast(${b.loadMilli} as bigint), cast(${b.memoryAvailableBytes} as bigint), cast(${b.diskAvailableBytes} as bigint))`,
      ),
    );
    const beat = sql`with beat (id, epoch, at, load_milli, memory, disk) as (values ${values})`;
    const matches = sql`hosts.id = beat.id and hosts.epoch = beat.epoch and hosts.removed_at is null`;
    await this.#database.transact(async (tx) => {
      const revived = await sql<{ id: string }>`${beat} update hosts set connected = 1, down_since = null, down_reason = ''
        from beat where ${matches} and hosts.connected = 0 and beat.at > hosts.down_since returning hosts.id`.execute(tx.db);
      await sql`${beat} update hosts set last_seen_at = beat.at, load_milli = beat.load_milli, memory_available_bytes = beat.memory,
        disk_available_bytes = beat.disk from beat where ${matches}`.execute(tx.db);
      for (const { id } of revived.rows) tx.emit(hostEvent(await readHost(tx, id as HostId), 'HostReady', {}));
    });
  }
}

function newHost(host: NewHost, now: number): StoredHost {
  return {
    id: host.id,
    name: host.name,
    scheduling: 'open',
    removed_at: null,
    join_labels: JSON.stringify(host.labels),
    labels: '{}',
    zone: '',
    cpu_millis: 0,
    memory_bytes: 0,
    disk_bytes: 0,
    slots: 0,
    reserved_cpu_millis: 0,
    reserved_memory_bytes: 0,
    reserved_slots: 0,
    runtimes: '[]',
    agent_version: '',
    boot_id: '',
    epoch: 0,
    owner: '',
    connected: 0,
    down_since: null,
    down_reason: '',
    last_seen_at: 0,
    load_milli: 0,
    memory_available_bytes: 0,
    disk_available_bytes: 0,
    joined_at: now,
    certificate_expires_at: host.certificateExpiresAt,
  };
}
