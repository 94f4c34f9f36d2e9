import { sql, type Kysely } from 'kysely';

/** The cause of a stop and the name of the caller's token; empty for earlier stops. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const column of ['stop_cause', 'stop_by']) {
    await sql.raw(`alter table sandboxes add column ${column} text not null default ''`).execute(db);
  }
}
