import { sql } from 'kysely';
import { clip, DroverError, isSandboxId, type HostId, type SandboxId } from '@drover/foundation';
import * as limits from '../limits.ts';
import { sandboxById } from './change.ts';
import type { Database } from '../database/index.ts';
import { sandboxRow } from './rows.ts';
import type { SandboxFilter } from './drafts.ts';
import type { SandboxRow, SealedSecret } from '../model/index.ts';

export function sandboxNotFound(reference: string): DroverError {
  return new DroverError('sandbox-not-found', `there is no sandbox ${JSON.stringify(clip(reference))}`, {
    hint: '`drover sandbox ls` lists the sandboxes',
  });
}

/** A prefix of a SHA-256 in hex, at least as long as `drover identity ls` prints. */
const thumbprintPattern = /^[0-9a-f]{16,64}$/i;

/** The read-only methods of the sandbox store. */
export class SandboxQueries {
  protected readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  async get(id: SandboxId): Promise<SandboxRow | undefined> {
    const [row] = (await sandboxById(this.database.db, { id })).rows;
    return row === undefined ? undefined : sandboxRow(row);
  }

  /**
   * Finds a sandbox by id, `name`, `project/name`, common name or thumbprint. A deleted sandbox is found by its id or, with `deleted`, by its
   * name if no present sandbox has that name.
   * @throws {DroverError} sandbox-not-found; invalid-argument when several match
   */
  async find(reference: string, { deleted = false }: { readonly deleted?: boolean } = {}): Promise<SandboxRow> {
    if (isSandboxId(reference)) {
      const row = await this.get(reference);
      if (row === undefined) throw sandboxNotFound(reference);
      return row;
    }
    if (thumbprintPattern.test(reference)) {
      const row = await this.#byThumbprint(reference.toLowerCase());
      if (row !== undefined) return row;
    }
    // Names contain no dots, so a dot separates project and name in a common name (I-5), as a slash does in `project/name`.
    const slash = reference.search(/[./]/);
    const name = reference.slice(slash + 1);
    let query = this.database.db.selectFrom('sandboxes').selectAll().where('name', '=', name);
    if (slash >= 0) query = query.where('project', '=', reference.slice(0, slash));
    // A bare name means the sandbox without a project, or else the only sandbox of that name in any project.
    const [first, second] = await query.where('deleted_at', 'is', null).orderBy('project').limit(2).execute();
    if (first === undefined) {
      const last = deleted ? await query.orderBy('deleted_at', 'desc').limit(1).executeTakeFirst() : undefined;
      if (last === undefined) throw sandboxNotFound(reference);
      return sandboxRow(last);
    }
    if (second !== undefined && first.project !== '') {
      throw new DroverError('invalid-argument', `sandboxes of several projects are named ${JSON.stringify(clip(name))}`, {
        hint: `use project/${clip(name)}, or the id`,
      });
    }
    return sandboxRow(first);
  }

  /** @throws {DroverError} invalid-argument when several thumbprints begin with the digits */
  async #byThumbprint(digits: string): Promise<SandboxRow | undefined> {
    const rows = await this.database.db
      .selectFrom('sandboxes')
      .innerJoin('identities', 'identities.sandbox_id', 'sandboxes.id')
      .selectAll('sandboxes')
      .where((eb) => eb.or([eb('thumbprint', 'like', `${digits}%`), eb('next_thumbprint', '=', digits)]))
      .limit(2)
      .execute();
    const [first, second] = rows;
    if (second !== undefined) {
      throw new DroverError('invalid-argument', `the thumbprints of several sandboxes begin with ${clip(digits)}`, {
        hint: 'use more digits, or the id; `drover identity ls -o json` prints the whole thumbprints',
      });
    }
    return first === undefined ? undefined : sandboxRow(first);
  }

  /** The sandbox's sealed secrets; empty once it is deleted. */
  async secrets(id: SandboxId): Promise<readonly SealedSecret[]> {
    const { db } = this.database;
    return await db.selectFrom('sandbox_secrets').select(['name', 'sealed']).where('sandbox_id', '=', id).orderBy('name').execute();
  }

  async list(filter: SandboxFilter = {}): Promise<readonly SandboxRow[]> {
    let query = this.database.db
      .selectFrom('sandboxes')
      .selectAll()
      .orderBy('created_at')
      .orderBy('id')
      .limit(Math.min(filter.limit ?? limits.listPage, limits.listPageMax));
    if (filter.includeDeleted !== true) query = query.where('deleted_at', 'is', null);
    const { project, hostId, after } = filter;
    if (project !== undefined) query = query.where('project', '=', project);
    if (hostId !== undefined) query = query.where('host_id', '=', hostId);
    for (const [key, value] of Object.entries(filter.labels ?? {})) {
      query = query.where((eb) =>
        eb.exists(
          eb
            .selectFrom('sandbox_labels')
            .select('sandbox_labels.key')
            .whereRef('sandbox_labels.sandbox_id', '=', 'sandboxes.id')
            .where('sandbox_labels.key', '=', key)
            .where('sandbox_labels.value', '=', value),
        ),
      );
    }
    if (after !== undefined) {
      const { createdAt, id } = after;
      query = query.where((eb) => eb.or([eb('created_at', '>', createdAt), eb.and([eb('created_at', '=', createdAt), eb('id', '>', id)])]));
    }
    return (await query.execute()).map(sandboxRow);
  }

  /** All sandboxes that are placed on the host and not deleted: the host's desired state. */
  async onHost(hostId: HostId): Promise<readonly SandboxRow[]> {
    const rows = await this.database.db
      .selectFrom('sandboxes')
      .selectAll()
      .where('host_id', '=', hostId)
      .where('deleted_at', 'is', null)
      .orderBy('id')
      .execute();
    return rows.map(sandboxRow);
  }

  /** The sandboxes that wait for placement, oldest first. */
  async unplaced(limit: number): Promise<readonly SandboxRow[]> {
    const rows = await this.database.db
      .selectFrom('sandboxes')
      .selectAll()
      .where('deleted_at', 'is', null)
      .where('desired', 'in', ['running', 'paused'])
      .where((eb) => eb.or([eb('host_id', 'is', null), eb('pending_reason', '<>', '')]))
      .where((eb) =>
        eb.or([
          eb('observed', 'is', null),
          eb('observed', 'not in', ['stopped', 'failed']),
          eb('observed_generation', '<', eb.ref('start_generation')),
        ]),
      )
      .orderBy('created_at')
      .orderBy('id')
      .limit(limit)
      .execute();
    return rows.map(sandboxRow);
  }

  /** The desired-running sandboxes that are past their time to live. */
  async expired(now: number): Promise<readonly SandboxRow[]> {
    const rows = await this.database.db
      .selectFrom('sandboxes')
      .selectAll()
      .where('deleted_at', 'is', null)
      .where('desired', '=', 'running')
      .where('expires_at', '<=', now)
      .orderBy('expires_at')
      .limit(limits.rowsPerStatement)
      .execute();
    return rows.map(sandboxRow);
  }

  /** The sandboxes with --rm whose run has ended and whose rows have not changed since `before`. */
  async finished(before: number): Promise<readonly SandboxRow[]> {
    const rows = await this.database.db
      .selectFrom('sandboxes')
      .selectAll()
      .where('deleted_at', 'is', null)
      .where('desired', '<>', 'deleted')
      .where('observed', 'in', ['stopped', 'failed'])
      .whereRef('observed_generation', '>=', 'start_generation')
      .where('updated_at', '<=', before)
      .where('remove_on_exit', '=', sql.lit(1))
      // Contained sandboxes are not removed. They are excluded here so that they cannot fill the page.
      .where('containment', '=', '{}')
      .orderBy('updated_at')
      .limit(limits.rowsPerStatement)
      .execute();
    return rows.map(sandboxRow);
  }
}
