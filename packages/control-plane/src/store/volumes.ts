import { DroverError, type HostId, type SandboxId } from '@drover/foundation';
import type { Database, Tx, VolumeTable } from '../database/index.ts';
import { labelOf, type VolumeRow } from '../model/index.ts';

/**
 * Named volumes. Each method locks a volume's row before it reads or writes the volume's uses, so a volume cannot be removed while a
 * sandbox that uses it is being created.
 */
export class VolumeStore {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /** @throws {DroverError} name-taken */
  async create(volume: { readonly name: string; readonly hostId: HostId; readonly sizeBytes: number }): Promise<VolumeRow> {
    return await this.#database.transact(async (tx) => {
      const row: VolumeTable = {
        name: volume.name,
        host_id: volume.hostId,
        size_bytes: volume.sizeBytes,
        state: 'pending',
        message: 'its host has not created it yet',
        hint: '',
        created_at: tx.now,
      };
      const inserted = await tx.db
        .insertInto('volumes')
        .values(row)
        .onConflict((conflict) => conflict.doNothing())
        .returning('name')
        .executeTakeFirst();
      if (inserted === undefined) {
        throw new DroverError('name-taken', `there is a volume ${volume.name} already`, {
          hint: 'choose another name; see `drover volume ls`',
        });
      }
      return rowOf(row);
    });
  }

  /** @throws {DroverError} volume-not-found */
  async find(name: string): Promise<VolumeRow> {
    const row = await this.#database.db.selectFrom('volumes').selectAll().where('name', '=', name).executeTakeFirst();
    if (row === undefined) throw notFound(name);
    return rowOf(row);
  }

  /** Sorted by name. `unsettled`: only volumes that their host has yet to create or remove. */
  async list(filter: { readonly hostId?: HostId; readonly unsettled?: boolean } = {}): Promise<readonly VolumeRow[]> {
    let query = this.#database.db.selectFrom('volumes').selectAll();
    if (filter.hostId !== undefined) query = query.where('host_id', '=', filter.hostId);
    if (filter.unsettled === true) query = query.where('state', '<>', 'ready');
    return (await query.orderBy('name').execute()).map(rowOf);
  }

  /** The sandboxes that use each volume, running or not, as `name` or `project/name`. */
  async users(names: readonly string[]): Promise<ReadonlyMap<string, readonly string[]>> {
    const users = new Map<string, string[]>();
    if (names.length === 0) return users;
    for (const { volume, name } of await usesOf(this.#database.db, names)) users.set(volume, [...(users.get(volume) ?? []), name]);
    return users;
  }

  /** Records the sandbox as a user of the volumes. @throws {DroverError} volume-not-found; failed-precondition when a volume is not ready */
  async use(names: readonly string[], id: SandboxId): Promise<void> {
    await this.#database.transact(async (tx) => {
      for (const name of [...names].sort()) {
        const row = await lock(tx, name);
        if (row.state !== 'ready') {
          throw new DroverError('failed-precondition', `the volume ${name} is ${row.state}: ${row.message}`, {
            hint: `see \`drover volume get ${name}\``,
          });
        }
        await tx.db.insertInto('volume_uses').values({ volume: name, sandbox_id: id }).execute();
      }
    });
  }

  /** Stores the outcome of the host's work if the volume is still in the state `from`. */
  async settle(
    name: string,
    from: VolumeRow['state'],
    change: { readonly state?: 'ready'; readonly message: string; readonly hint: string },
  ): Promise<void> {
    await this.#database.db.updateTable('volumes').set(change).where('name', '=', name).where('state', '=', from).execute();
  }

  /** Marks the volume as deleting, so no new sandbox can use it. @throws {DroverError} volume-not-found, volume-in-use */
  async remove(name: string): Promise<VolumeRow> {
    return await this.#database.transact(async (tx) => {
      const row = await lock(tx, name);
      const users = (await usesOf(tx.db, [name])).map((use) => use.name);
      if (users.length > 0) {
        const shown = users.slice(0, 5).join(', ') + (users.length > 5 ? ` and ${users.length - 5} more` : '');
        throw new DroverError('volume-in-use', `the volume ${name} is used by ${shown}`, {
          hint: `remove what uses it first: drover sandbox rm ${users[0]}`,
        });
      }
      const change = { state: 'deleting', message: 'its host has not removed it yet', hint: '' } as const;
      await tx.db.updateTable('volumes').set(change).where('name', '=', name).execute();
      return rowOf({ ...row, ...change });
    });
  }

  /** Deletes the row: the host has removed the volume, or is itself removed. */
  async drop(name: string): Promise<void> {
    await this.#database.transact(async (tx) => {
      await tx.db.deleteFrom('volume_uses').where('volume', '=', name).execute();
      await tx.db.deleteFrom('volumes').where('name', '=', name).execute();
    });
  }
}

/** Locks the row with an update that changes nothing; SQLite has a single writer. @throws {DroverError} volume-not-found */
async function lock(tx: Tx, name: string): Promise<VolumeTable> {
  const row = await tx.db
    .updateTable('volumes')
    .set((eb) => ({ name: eb.ref('name') }))
    .where('name', '=', name)
    .returningAll()
    .executeTakeFirst();
  if (row === undefined) throw notFound(name);
  return row;
}

/** For each volume, the sandboxes that use it and are not deleted. */
async function usesOf(db: Database['db'] | Tx['db'], names: readonly string[]): Promise<readonly { volume: string; name: string }[]> {
  const rows = await db
    .selectFrom('volume_uses')
    .innerJoin('sandboxes', 'sandboxes.id', 'volume_uses.sandbox_id')
    .select(['volume_uses.volume', 'sandboxes.project', 'sandboxes.name'])
    .where('volume_uses.volume', 'in', [...names])
    .where('sandboxes.deleted_at', 'is', null)
    .orderBy('sandboxes.created_at')
    .execute();
  return rows.map(({ volume, project, name }) => ({ volume, name: labelOf({ project, name }) }));
}

const notFound = (name: string): DroverError =>
  new DroverError('volume-not-found', `there is no volume ${name}`, {
    hint: '`drover volume create` makes one; `drover volume ls` lists them',
  });

function rowOf(row: VolumeTable): VolumeRow {
  return {
    name: row.name,
    hostId: row.host_id as HostId,
    sizeBytes: row.size_bytes,
    state: row.state as VolumeRow['state'],
    message: row.message,
    hint: row.hint,
    createdAt: row.created_at,
  };
}
