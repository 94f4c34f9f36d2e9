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
import * as limits from '../limits.ts';

/** Begins with the write lock: a transaction that reads and then writes can then neither fail nor see its reads grow old. */
class ImmediateDriver extends SqliteDriver {
  override async beginTransaction(connection: DatabaseConnection): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('begin immediate'));
  }
}

/** node:sqlite in the shape that kysely's SQLite driver wants. Statements are prepared once. */
function adapt(database: DatabaseSync): SqliteDatabase {
  const prepared = new Map<string, ReturnType<SqliteDatabase['prepare']>>();
  const wrap = (statement: StatementSync): ReturnType<SqliteDatabase['prepare']> => ({
    reader: statement.columns().length > 0,
    all: (parameters) => statement.all(...(parameters as SQLInputValue[])),
    run: (parameters) => statement.run(...(parameters as SQLInputValue[])),
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
    createDriver: () => new ImmediateDriver({ database: adapt(database) }),
    createIntrospector: (db) => new SqliteIntrospector(db),
    createQueryCompiler: () => new SqliteQueryCompiler(),
  };
}
