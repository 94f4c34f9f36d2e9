import type { Compilable, CompiledQuery, Kysely, QueryResult } from 'kysely';
import type { Schema } from './schema.ts';

/**
 * A statement whose SQL is made once for each database: making it takes longer than SQLite takes to run it.
 * @param build is called once, with stand-ins for the values, and may do nothing with them but hand them on
 */
export function prepared<V extends object, R>(
  names: readonly (keyof V & string)[],
  build: (db: Kysely<Schema>, values: V) => Compilable<R>,
): (db: Kysely<Schema>, values: V) => Promise<QueryResult<R>> {
  const standIns = new Map<unknown, keyof V>(names.map((name) => [Symbol(name), name]));
  // What a database and its transactions have in common.
  const made = new WeakMap<object, CompiledQuery<R>>();
  return async (db, values) => {
    const { adapter } = db.getExecutor();
    let query = made.get(adapter);
    if (query === undefined) {
      query = build(db, Object.fromEntries([...standIns].map(([standIn, name]) => [name, standIn])) as unknown as V).compile();
      made.set(adapter, query);
    }
    const parameters = query.parameters.map((parameter) => {
      const name = standIns.get(parameter);
      return name === undefined ? parameter : values[name];
    });
    return await db.executeQuery({ ...query, parameters });
  };
}
