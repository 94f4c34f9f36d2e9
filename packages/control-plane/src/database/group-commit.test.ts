import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { CompiledQuery, Kysely, sql, type LogEvent, type Transaction } from 'kysely';
import { waitingTransactions } from '../limits.ts';
import { GroupCommit } from './group-commit.ts';
import type { Schema } from './schema.ts';
import { sqliteDialect } from './sqlite.ts';

let directory: string;
let db: Kysely<Schema>;
let statements: string[];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-commit-'));
  statements = [];
  const log = (event: LogEvent): void => void statements.push(event.query.sql);
  db = new Kysely<Schema>({ dialect: sqliteDialect(join(directory, 'test.db')), log });
  await db.executeQuery(CompiledQuery.raw('create table numbers (value integer primary key)'));
  statements.length = 0;
});

afterEach(async () => {
  await db.destroy();
  await rm(directory, { recursive: true });
});

const add = async (tx: Transaction<Schema>, value: number): Promise<void> =>
  void (await sql`insert into numbers values (${value})`.execute(tx));
const values = async (): Promise<number[]> => {
  const { rows } = await sql<{ value: number }>`select value from numbers order by value`.execute(db);
  return rows.map(({ value }) => value);
};

describe('transactions of a database with a single writer', () => {
  test('share a commit if they arrive together', async () => {
    const commits = new GroupCommit(db);
    await Promise.all(Array.from({ length: 20 }, async (_, value) => await commits.run(async (tx) => await add(tx, value))));
    expect(await values()).toHaveLength(20);
    expect(statements.filter((text) => text === 'begin immediate')).toHaveLength(1);
  });

  test('are each atomic, and return their own result', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.boolean(), { minLength: 1, maxLength: 12 }), async (fails) => {
        await sql`delete from numbers`.execute(db);
        const commits = new GroupCommit(db);
        const outcomes = await Promise.allSettled(
          fails.map(async (fail, i) =>
            commits.run(async (tx) => {
              await add(tx, 2 * i);
              if (fail) throw new Error(`no ${i}`);
              await add(tx, 2 * i + 1);
              return i;
            }),
          ),
        );
        expect(outcomes).toEqual(
          fails.map((fail, i) => (fail ? { status: 'rejected', reason: new Error(`no ${i}`) } : { status: 'fulfilled', value: i })),
        );
        expect(await values()).toEqual(fails.flatMap((fail, i) => (fail ? [] : [2 * i, 2 * i + 1])));
      }),
      { numRuns: 30 },
    );
  });

  test('all fail with the cause when SQLite rolls back the whole transaction', async () => {
    const commits = new GroupCommit(db);
    const full = new Error('the disk is full');
    const outcomes = await Promise.allSettled([
      commits.run(async (tx) => await add(tx, 1)),
      commits.run(async (tx) => {
        // As SQLite does on SQLITE_FULL.
        await tx.executeQuery(CompiledQuery.raw('rollback'));
        throw full;
      }),
    ]);
    expect(outcomes).toEqual([
      { status: 'rejected', reason: full },
      { status: 'rejected', reason: full },
    ]);
    expect(await values()).toEqual([]);
    await commits.run(async (tx) => await add(tx, 3));
    expect(await values()).toEqual([3]);
  });

  test('beyond the limit are refused, and the others are committed', async () => {
    const commits = new GroupCommit(db);
    const nothing = async (): Promise<undefined> => await Promise.resolve(undefined);
    const waiting = Array.from({ length: waitingTransactions }, async () => await commits.run(nothing));
    await expect(commits.run(nothing)).rejects.toMatchObject({ code: 'queue-full' });
    await Promise.all(waiting);
  });
});
