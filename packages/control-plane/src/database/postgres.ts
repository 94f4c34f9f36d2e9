import pg from 'pg';
import { PostgresDialect, type Dialect } from 'kysely';
import { Backoff, type Clock, type Logger } from '@drover/foundation';
import * as limits from '../limits.ts';

/** The NOTIFY channel of commits that wrote events. */
export const eventChannel = 'drover_events';

const int8 = pg.types.builtins.INT8;

/** Parses bigint columns as numbers, on these connections only: every stored integer is below 2^53. */
const types: pg.CustomTypesConfig = {
  getTypeParser: (oid, format) => (oid === int8 ? Number : (pg.types.getTypeParser(oid, format) as (text: string) => unknown)),
};

export function postgresDialect(url: string, logger: Logger): Dialect {
  const pool = new pg.Pool({
    connectionString: url,
    max: limits.postgresConnections,
    connectionTimeoutMillis: limits.postgresConnectMs,
    types,
  });
  // Without a listener, an idle connection that the server closes would crash this process. The pool replaces it automatically.
  pool.on('error', (error) => logger.warn({ err: error }, 'a connection to PostgreSQL ended'));
  // So would a connection in use. Its query rejects with the same error.
  pool.on('connect', (client) => client.on('error', (error) => logger.debug({ err: error }, 'a connection to PostgreSQL failed')));
  return new PostgresDialect({ pool });
}

/** Calls `wake` after commits of other replicas, and once after each reconnection, for the commits missed meanwhile. */
export class PostgresListener {
  readonly #url: string;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #wake: () => void;
  readonly #closing = new AbortController();
  readonly #done: Promise<void>;

  constructor(options: { readonly url: string; readonly clock: Clock; readonly logger: Logger; readonly wake: () => void }) {
    this.#url = options.url;
    this.#clock = options.clock;
    this.#logger = options.logger;
    this.#wake = options.wake;
    this.#done = this.#run();
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await this.#done;
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    const backoff = new Backoff({ baseMs: limits.listenBackoffBaseMs, capMs: limits.listenBackoffCapMs });
    while (!signal.aborted) {
      try {
        await this.#listen(signal, () => backoff.reset());
      } catch (error) {
        this.#logger.warn({ err: error, attempt: backoff.attempts + 1 }, 'not listening for events of other replicas; retrying');
      }
      if (signal.aborted) return;
      // Only the closing signal rejects the sleep, and the loop checks that signal.
      await this.#clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
    }
  }

  /** Resolves when closed; rejects when the connection ends. */
  async #listen(signal: AbortSignal, listening: () => void): Promise<void> {
    const client = new pg.Client({ connectionString: this.#url, connectionTimeoutMillis: limits.postgresConnectMs, keepAlive: true });
    const ended = Promise.withResolvers<void>();
    // Marks the promise as handled: it can reject before the await below.
    ended.promise.catch(() => undefined);
    client.on('error', (error) => ended.reject(error));
    client.on('end', () => ended.reject(new Error('the connection ended')));
    client.on('notification', () => this.#wake());
    const abort = (): void => ended.resolve();
    signal.addEventListener('abort', abort, { once: true });
    let connected = false;
    try {
      await client.connect();
      connected = true;
      await client.query(`listen ${eventChannel}`);
      listening();
      this.#wake();
      await ended.promise;
    } finally {
      signal.removeEventListener('abort', abort);
      // The connection may already be broken, so an error of its end is ignored. After a failed connect, end() would never resolve.
      if (connected) await client.end().catch(() => undefined);
    }
  }
}
