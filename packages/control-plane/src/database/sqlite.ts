import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite';
import {
  CompiledQuery,
  SqliteAdapter,
  SqliteDriver,
  SqliteIntrospector,
  SqliteQueryCompiler,
  type DatabaseConnection,
  type Dialect,
  type SqliteDatabase,
} from 'kysely';
import { DroverError } from '@drover/foundation';
import * as limits from '../limits.ts';

/** Begins with the write lock: a transaction that reads and then writes can then neither fail nor see its reads grow old. */
class ImmediateDriver extends SqliteDriver {
  readonly #database: DatabaseSync;

  constructor(database: DatabaseSync) {
    super({ database: adapt(database) });
    this.#database = database;
  }

  override async beginTransaction(connection: DatabaseConnection): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('begin immediate'));
  }

  /** A full disk, for one, has SQLite roll back by itself (https://www.sqlite.org/lang_transaction.html): what went wrong is the news. */
  override async rollbackTransaction(connection: DatabaseConnection): Promise<void> {
    if (this.#database.isTransaction) await super.rollbackTransaction(connection);
  }
}

/** node:sqlite in the shape that kysely's SQLite driver wants. Statements are prepared once. */
function adapt(database: DatabaseSync): SqliteDatabase {
  const prepared = new Map<string, ReturnType<SqliteDatabase['prepare']>>();
  const wrap = (statement: StatementSync): ReturnType<SqliteDatabase['prepare']> => ({
    reader: statement.columns().length > 0,
    all: (parameters) => said(() => statement.all(...(parameters as SQLInputValue[]))),
    run: (parameters) => said(() => statement.run(...(parameters as SQLInputValue[]))),
    iterate: (parameters) => statement.iterate(...(parameters as SQLInputValue[])),
  });
  return {
    close: () => database.close(),
    prepare(text) {
      let statement = prepared.get(text);
      if (statement === undefined) {
        if (prepared.size >= limits.preparedStatements) prepared.clear();
        statement = wrap(database.prepare(text));
        prepared.set(text, statement);
      }
      return statement;
    },
  };
}

/** https://www.sqlite.org/rescode.html#full */
const full = 13;

/** What a person can do something about is said to them. */
function said<T>(query: () => T): T {
  try {
    return query();
  } catch (error) {
    if ((error as { errcode?: unknown }).errcode !== full) throw error;
    throw new DroverError('disk-full', 'the disk that the control plane keeps its data on is full', {
      hint: 'make room on the disk of --data, and try again; nothing that was answered before is lost',
      cause: error,
    });
  }
}

/** A database file. Commits are on the disk before they are answered (WAL with synchronous=FULL): kill -9 or a power cut loses none. */
export function sqliteDialect(path: string): Dialect {
  const database = new DatabaseSync(path);
  try {
    database.exec(`pragma busy_timeout = ${limits.sqliteBusyMs}`);
    database.exec('pragma journal_mode = wal');
    database.exec('pragma synchronous = full');
    database.exec('pragma foreign_keys = on');
  } catch (error) {
    database.close();
    throw error;
  }
  return {
    createAdapter: () => new SqliteAdapter(),
    createDriver: () => new ImmediateDriver(database),
    createIntrospector: (db) => new SqliteIntrospector(db),
    createQueryCompiler: () => new SqliteQueryCompiler(),
  };
}
