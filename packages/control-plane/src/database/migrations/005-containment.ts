import { sql, type Kysely } from 'kysely';

interface Contained {
  readonly id: string;
  readonly desired: string;
  readonly killed: number;
  readonly network_cut: number;
  readonly revoked_at: number | null;
  readonly updated_at: number;
}

/** Containment records (I-4), and whether the host reports the registration port as closed. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(`alter table sandboxes add column containment text not null default '{}'`).execute(db);
  await sql.raw('alter table sandboxes add column observed_registration_closed bigint not null default 0').execute(db);
  // Earlier versions did not distinguish a pause from a containment, so paused sandboxes get no record and can be resumed.
  const { rows } = await sql<Contained>`select id, desired, killed, network_cut, revoked_at, updated_at from sandboxes
    where deleted_at is null and (network_cut = 1 or killed = 1 or revoked_at is not null)`.execute(db);
  for (const row of rows) {
    const record = { by: '', at: row.updated_at, reason: '' };
    const containment = {
      ...(row.network_cut === 1 ? { 'cut-network': record } : {}),
      ...(row.killed === 1 && row.desired === 'stopped' ? { kill: record } : {}),
      ...(row.revoked_at === null ? {} : { revoke: { ...record, at: row.revoked_at } }),
    };
    await sql`update sandboxes set containment = ${JSON.stringify(containment)} where id = ${row.id}`.execute(db);
  }
  await sql.raw('alter table sandboxes drop column killed').execute(db);
}
