import type { Compilable, CompiledQuery, Kysely, QueryResult } from 'kysely';
import type { Schema } from './schema.ts';

/**
 * A statement whose SQL is compiled once per database: compiling takes longer than running it on SQLite.
 * @param build called once, with a placeholder for each value of the first call; it must not inspect the placeholders
 */
export function prepared<V extends object, R>(
  build: (db: Kysely<Schema>, values: V) => Compilable<R>,
): (db: Kysely<Schema>, values: V) => Promise<QueryResult<R>> {
  // Keyed by the adapter, which a database shares with its transactions.
  const statements = new WeakMap<object, { readonly query: CompiledQuery<R>; readonly names: ReadonlyMap<unknown, keyof V> }>();
  return async (db, values) => {
    const { adapter } = db.getExecutor();
    let statement = statements.get(adapter);
    if (statement === undefined) {
      const placeholders = Object.fromEntries(Object.keys(values).map((name) => [name, Symbol(name)])) as unknown as V;
      const names = new Map<unknown, keyof V>(Object.entries(placeholders).map(([name, placeholder]) => [placeholder, name as keyof V]));
      statement = { query: build(db, placeholders).compile(), names };
      statements.set(adapter, statement);
    }
    const { query, names } = statement;
    const parameters = query.parameters.map((parameter) => {
      const name = names.get(parameter);
      return name === undefined ? parameter : values[name];
    });
    return await db.executeQuery({ ...query, parameters });
  };
}
