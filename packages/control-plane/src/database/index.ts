export { isUniqueViolation, OpenDatabase, type Database, type Tx } from './database.ts';
export { migrate } from './migrations/index.ts';
export { prepared } from './prepared.ts';
export type * from './schema.ts';
