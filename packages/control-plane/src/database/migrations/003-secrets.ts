import { sql, type Kysely } from 'kysely';

/** Sealed secrets of sandboxes. They are deleted with the sandbox. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql
    .raw(`create table sandbox_secrets (sandbox_id text not null references sandboxes (id), name text not null, sealed text not null,
      primary key (sandbox_id, name))`)
    .execute(db);
}
