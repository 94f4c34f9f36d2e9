import { sql, type Kysely } from 'kysely';

/**
 * The registry of identities and its tokens (I-7 to I-17), the worldview's rows (I-35), containment (I-4), and the columns that
 * `finished` queries. There are no foreign keys: reaping must find rows whose sandbox is deleted (I-12).
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  const run = async (statement: string): Promise<void> => {
    await sql.raw(statement).execute(db);
  };
  await run(`create table identities (sandbox_id text primary key, thumbprint text not null unique, next_thumbprint text unique,
    project text not null, name text not null, common_name text not null, issue bigint not null, request_hash text not null,
    registered_at bigint not null, last_seen_at bigint not null)`);
  await run(`create table sandbox_certificates (thumbprint text primary key, sandbox_id text not null, issue bigint not null,
    request_hash text not null, issued_at bigint not null, expires_at bigint not null)`);
  await run('create index sandbox_certificates_by_sandbox on sandbox_certificates (sandbox_id, issue)');
  await run('create index sandbox_certificates_by_expiry on sandbox_certificates (expires_at)');
  await run(`create table sandbox_tokens (hash text primary key, scope text not null, sandbox_id text not null, thumbprint text not null,
    issued_at bigint not null, expires_at bigint, consumed_at bigint)`);
  await run('create index sandbox_tokens_by_sandbox on sandbox_tokens (sandbox_id, issued_at)');
  await run('create index sandbox_tokens_by_expiry on sandbox_tokens (expires_at) where expires_at is not null');
  await run('create table sandbox_views (sandbox_id text primary key, document text not null, updated_at bigint not null)');

  await run('alter table sandboxes add column network_cut bigint not null default 0');
  await run('alter table sandboxes add column observed_network_cut bigint not null default 0');
  await run('alter table sandboxes add column revoked_at bigint');
  await run('alter table sandboxes add column killed bigint not null default 0');

  await run('alter table sandboxes add column remove_on_exit bigint not null default 0');
  // The pattern matches protobuf's JSON. It cannot match inside a string, where quotation marks are escaped.
  await run(`update sandboxes set remove_on_exit = 1 where spec like '%"removeOnExit":true%'`);
  await run(`create index sandboxes_to_remove on sandboxes (updated_at) where remove_on_exit = 1 and deleted_at is null`);
}
