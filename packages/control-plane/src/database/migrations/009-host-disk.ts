import { sql, type Kysely } from 'kysely';

/** The free space on the disk of a host's state directory, from its last heartbeat; 0 before the first. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw('alter table hosts add column disk_available_bytes bigint not null default 0').execute(db);
}
