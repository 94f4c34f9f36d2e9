import { sql, type Kysely } from 'kysely';

/** Why a sandbox was asked to end, and who asked; empty for what was stopped before this was recorded. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const column of ['stop_cause', 'stop_by']) {
    await sql.raw(`alter table sandboxes add column ${column} text not null default ''`).execute(db);
  }
}
