import { sql, type Kysely } from 'kysely';

/** What a person can do about a message. Earlier versions joined it to the message; their rows stay as they are. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const table of ['sandboxes', 'volumes']) {
    await sql.raw(`alter table ${table} add column hint text not null default ''`).execute(db);
  }
}
