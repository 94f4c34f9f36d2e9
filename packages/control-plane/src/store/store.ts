import type { IdempotencyStore } from './idempotency.ts';
import type { Tables } from './tables.ts';

/**
 * The state of the control plane. Every method is one transaction; a method that changes state writes the events of the change in the same
 * transaction (design: State). The same queries run on SQLite and PostgreSQL. Times are milliseconds since the epoch.
 *
 * The API and placement write desired columns, the hub writes observed ones, and neither writes the other's (L-22).
 */
export interface Store extends Tables {
  readonly kind: 'sqlite' | 'postgres';
  readonly idempotency: IdempotencyStore;
  /**
   * Runs `work` as one transaction: all its calls on the given tables commit together. `work` must await nothing but these calls, and must not
   * call this store: SQLite has a single connection, which the transaction holds. `work` may run again (`OpenDatabase.transact`).
   */
  together<T>(work: (store: Tables) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}
