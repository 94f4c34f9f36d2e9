import { sql, type Kysely } from 'kysely';

/** The name of the signal that killed the main process. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw("alter table sandboxes add column exit_signal text not null default ''").execute(db);
}
