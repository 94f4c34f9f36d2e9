import { sql, type Kysely } from 'kysely';

/** What is free on the disk of a host's state directory, as its last heartbeat reported it; 0 before the first. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw('alter table hosts add column disk_available_bytes bigint not null default 0').execute(db);
}
