import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Kysely, sql } from 'kysely';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { sqliteDialect } from './sqlite.ts';

let directory: string;
let db: Kysely<unknown>;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-sqlite-'));
  db = new Kysely<unknown>({ dialect: sqliteDialect(join(directory, 'drover.db')) });
});
afterEach(async () => {
  await db.destroy();
  await rm(directory, { recursive: true, force: true });
});

it('a full disk is reported, although SQLite has rolled back; committed data stays, and the next transaction succeeds', async () => {
  await sql`create table t (a text)`.execute(db);
  const insert = async (bytes: number): Promise<void> =>
    await db.transaction().execute(async (tx) => void (await sql`insert into t values (${'x'.repeat(bytes)})`.execute(tx)));
  await insert(10);
  // The limit is the present number of pages: SQLite reports the same error as for ENOSPC.
  await sql`pragma max_page_count = 1`.execute(db);
  await expect(insert(100_000)).rejects.toMatchObject({ code: 'disk-full', hint: expect.stringContaining('--data') as string });
  await sql`pragma max_page_count = 1000`.execute(db);
  await insert(100_000);
  const { rows } = await sql<{ n: number }>`select count(*) as n from t`.execute(db);
  expect(rows).toEqual([{ n: 2 }]);
});
