import { sql, type Kysely } from 'kysely';

/**
 * Idempotency keys are written with what they stand for (L-20): nothing is claimed any more. Deleted sandboxes and join tokens are
 * found by age, to be dropped.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  const run = async (statement: string): Promise<void> => {
    await sql.raw(statement).execute(db);
  };
  await run('delete from idempotency where response is null');
  await run('alter table idempotency drop column owner');
  await run('alter table idempotency drop column claimed_until');
  await run('create index sandboxes_deleted on sandboxes (deleted_at, id) where deleted_at is not null');
  await run('create index join_tokens_by_expiry on join_tokens (expires_at)');
}
