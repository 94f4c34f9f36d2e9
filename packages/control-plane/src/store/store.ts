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
   * Runs `work` as one transaction of all its calls on the given tables. `work` must not wait for anything else, least of all for this
   * store: SQLite has one connection, which `work` holds. The database may have it repeated.
   */
  together<T>(work: (store: Tables) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}
