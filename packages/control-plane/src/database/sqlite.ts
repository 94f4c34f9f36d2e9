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

/** Begins each transaction with the write lock, so a transaction that reads before it writes never works on stale data or fails to upgrade. */
class ImmediateDriver extends SqliteDriver {
  readonly #database: DatabaseSync;

  constructor(database: DatabaseSync) {
    super({ database: adapt(database) });
    this.#database = database;
  }

  override async beginTransaction(connection: DatabaseConnection): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('begin immediate'));
  }

  /**
   * Some errors, such as a full disk, make SQLite roll back automatically (https://www.sqlite.org/lang_transaction.html). A second rollback
   * would fail and hide the cause.
   */
  override async rollbackTransaction(connection: DatabaseConnection): Promise<void> {
    if (this.#database.isTransaction) await super.rollbackTransaction(connection);
  }
}

/** Adapts node:sqlite to the interface of kysely's SQLite driver. Statements are prepared once. */
function adapt(database: DatabaseSync): SqliteDatabase {
  const prepared = new Map<string, ReturnType<SqliteDatabase['prepare']>>();
  const wrap = (statement: StatementSync): ReturnType<SqliteDatabase['prepare']> => ({
    reader: statement.columns().length > 0,
    all: (parameters) => reportFullDisk(() => statement.all(...(parameters as SQLInputValue[]))),
    run: (parameters) => reportFullDisk(() => statement.run(...(parameters as SQLInputValue[]))),
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

/** Runs a query. @throws {DroverError} disk-full with a hint, instead of SQLite's error */
function reportFullDisk<T>(query: () => T): T {
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

/** A database file. A commit returns when it is on the disk (WAL with synchronous=FULL): neither kill -9 nor a power cut loses it. */
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
