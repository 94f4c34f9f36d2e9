import { sql, type Kysely } from 'kysely';

/** The signal that ended the main process, by its name. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw("alter table sandboxes add column exit_signal text not null default ''").execute(db);
}
