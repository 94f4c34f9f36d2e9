import { sql, type Kysely } from 'kysely';

/** Named volumes and the sandboxes that use them. A volume in use is not removed. */
export async function up(db: Kysely<unknown>): Promise<void> {
  const run = async (statement: string): Promise<void> => {
    await sql.raw(statement).execute(db);
  };
  await run(`create table volumes (name text primary key, host_id text not null references hosts (id), size_bytes bigint not null,
    state text not null, message text not null, created_at bigint not null)`);
  await run('create index volumes_by_host on volumes (host_id)');
  await run(`create table volume_uses (volume text not null references volumes (name), sandbox_id text not null references sandboxes (id),
    primary key (volume, sandbox_id))`);
  await run('create index volume_uses_by_sandbox on volume_uses (sandbox_id)');
}
