import { sql, type Kysely } from 'kysely';
import { DroverError } from '@drover/foundation';
import type { Database } from '../database.ts';
import * as initial from './001-initial.ts';
import * as bounded from './002-bounded.ts';
import * as secrets from './003-secrets.ts';
import * as identities from './004-identities.ts';
import * as containment from './005-containment.ts';
import * as volumes from './006-volumes.ts';
import * as exitSignal from './007-exit-signal.ts';
import * as stopCauses from './008-stop-causes.ts';
import * as hostDisk from './009-host-disk.ts';
import * as hints from './010-hints.ts';

/** The migrations in their order. A released migration never changes; a new one is appended. */
export const migrations = [
  { name: '001-initial', up: initial.up },
  { name: '002-bounded', up: bounded.up },
  { name: '003-secrets', up: secrets.up },
  { name: '004-identities', up: identities.up },
  { name: '005-containment', up: containment.up },
  { name: '006-volumes', up: volumes.up },
  { name: '007-exit-signal', up: exitSignal.up },
  { name: '008-stop-causes', up: stopCauses.up },
  { name: '009-host-disk', up: hostDisk.up },
  { name: '010-hints', up: hints.up },
] as const;

/** The key of the advisory lock: "drover" in ASCII, which no other program uses. */
const lockId = 0x64726f766572;

/**
 * Brings the schema up to date, in one transaction under a lock: concurrently starting processes run each migration once.
 * @throws {DroverError} failed-precondition when a newer version of Drover has changed the database
 */
export async function migrate(database: Database): Promise<void> {
  await database.transact(async ({ db }) => {
    // A SQLite transaction begins with the write lock (BEGIN IMMEDIATE). PostgreSQL needs an advisory lock.
    if (database.kind === 'postgres') await sql`select pg_advisory_xact_lock(${sql.lit(lockId)})`.execute(db);
    await sql`create table if not exists drover_migrations (name text primary key, applied_at bigint not null)`.execute(db);
    const { rows } = await sql<{ name: string }>`select name from drover_migrations`.execute(db);
    const applied = new Set(rows.map((row) => row.name));
    const known = new Set<string>(migrations.map((m) => m.name));
    const unknown = [...applied].find((name) => !known.has(name));
    if (unknown !== undefined) {
      throw new DroverError('failed-precondition', `the database was changed by a newer Drover (migration ${unknown})`, {
        hint: 'run that version, or restore the database from before the upgrade',
      });
    }
    for (const migration of migrations) {
      if (applied.has(migration.name)) continue;
      // A migration works on the tables of its version, not on the present schema.
      await migration.up(db as unknown as Kysely<unknown>);
      await sql`insert into drover_migrations (name, applied_at) values (${migration.name}, ${database.clock.now()})`.execute(db);
    }
  });
}
