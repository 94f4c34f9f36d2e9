import { sql, type Kysely } from 'kysely';

/** The hint of a message. Earlier versions appended it to the message; their rows are not changed. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const table of ['sandboxes', 'volumes']) {
    await sql.raw(`alter table ${table} add column hint text not null default ''`).execute(db);
  }
}
