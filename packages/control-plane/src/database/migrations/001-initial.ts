import { sql, type Kysely } from 'kysely';

/** The tables of the first version. bigint is a 64-bit integer in both databases. */
export async function up(db: Kysely<unknown>): Promise<void> {
  const text = (...names: string[]): string => names.map((n) => `${n} text not null`).join(', ');
  const integers = (...names: string[]): string => names.map((n) => `${n} bigint not null default 0`).join(', ');
  const optional = (...names: string[]): string => names.map((n) => `${n} bigint`).join(', ');
  const run = async (statement: string): Promise<void> => {
    await sql.raw(statement).execute(db);
  };

  await run(`create table hosts (id text primary key, ${text('name', 'scheduling', 'join_labels', 'labels', 'zone', 'runtimes')},
    ${text('agent_version', 'boot_id', 'owner', 'down_reason')}, ${optional('removed_at', 'down_since')},
    ${integers('cpu_millis', 'memory_bytes', 'disk_bytes', 'slots', 'reserved_cpu_millis', 'reserved_memory_bytes', 'reserved_slots')},
    ${integers('epoch', 'connected', 'last_seen_at', 'load_milli', 'memory_available_bytes', 'joined_at', 'certificate_expires_at')})`);
  await run('create index hosts_by_name on hosts (name)');

  await run(`create table sandboxes (id text primary key, ${text('project', 'name', 'spec', 'labels', 'desired', 'hold')},
    ${text('pending_reason', 'pending_message', 'reason', 'message', 'address', 'runtime', 'image_digest')},
    host_id text references hosts (id), observed text,
    ${integers('generation', 'start_generation', 'placed_generation', 'given_up_generation')},
    ${integers('cpu_millis', 'memory_bytes', 'slots', 'observed_generation', 'observed_sequence', 'out_of_memory', 'start_count')},
    ${integers('created_at', 'updated_at', 'stop_grace_ms')},
    ${optional('exit_code', 'lost_since', 'started_at', 'finished_at', 'deleted_at', 'expires_at')})`);
  await run('create unique index sandboxes_name on sandboxes (project, name) where deleted_at is null');
  await run('create index sandboxes_by_host on sandboxes (host_id) where deleted_at is null');
  await run('create index sandboxes_by_age on sandboxes (created_at, id)');
  await run(`create index sandboxes_to_place on sandboxes (created_at, id)
    where deleted_at is null and (host_id is null or pending_reason <> '')`);
  await run('create index sandboxes_to_expire on sandboxes (expires_at) where deleted_at is null and expires_at is not null');
  await run(`create table sandbox_labels (sandbox_id text not null references sandboxes (id), ${text('key', 'value')},
    primary key (sandbox_id, key))`);
  await run('create index sandbox_labels_by_value on sandbox_labels (key, value)');

  await run(`create table strays (host_id text not null references hosts (id), sandbox_id text not null,
    ${integers('cpu_millis', 'memory_bytes', 'slots')}, primary key (host_id, sandbox_id))`);

  await run(`create table events (id bigint primary key, time bigint not null, ${text('kind', 'type', 'subject', 'data')})`);
  await run('create index events_by_subject on events (subject, id)');
  await run('create table event_counter (id bigint primary key, last bigint not null)');
  await run('insert into event_counter (id, last) values (1, 0)');

  await run(`create table join_tokens (hash text primary key, ${integers('expires_at', 'uses_left')}, ${text('labels')})`);
  await run(`create table join_token_uses (hash text not null references join_tokens (hash), host_id text not null,
    primary key (hash, host_id))`);
  await run(`create table api_tokens (hash text primary key, ${text('name')}, created_at bigint not null)`);

  await run(`create table idempotency (key text primary key, ${text('method', 'request_hash', 'owner')},
    ${integers('claimed_until', 'created_at')}, response text)`);
  await run('create index idempotency_by_age on idempotency (created_at)');
}
