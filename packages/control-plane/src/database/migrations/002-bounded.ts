import { sql, type Kysely } from 'kysely';

/**
 * An idempotency key is now written in one transaction with its response (L-20), so the columns of claims are dropped. The indexes
 * serve the deletion of old deleted sandboxes and join tokens.
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
