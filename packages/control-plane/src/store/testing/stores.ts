import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import pg from 'pg';
import type { Clock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { openStore } from '../open.ts';
import type { Store } from '../store.ts';
import { startPostgres, type TestPostgres } from './postgres.ts';

/** Creates fresh databases of one kind. The suites run on both kinds. */
export class TestStores {
  readonly #kind: Store['kind'];
  #postgres: TestPostgres | undefined;
  #directory: string | undefined;
  readonly #open: Store[] = [];
  #count = 0;

  constructor(kind: Store['kind']) {
    this.#kind = kind;
  }

  async start(): Promise<void> {
    if (this.#kind === 'postgres') this.#postgres = await startPostgres();
    else this.#directory = await mkdtemp(join(tmpdir(), 'drover-store-'));
  }

  get postgres(): TestPostgres {
    if (this.#postgres === undefined) throw new Error('not started, or not PostgreSQL');
    return this.#postgres;
  }

  async newUrl(): Promise<string> {
    return this.#kind === 'postgres'
      ? await this.postgres.createDatabase()
      : `sqlite:${join(this.#directory ?? '', `${++this.#count}.db`)}`;
  }

  async open(options: { readonly url?: string; readonly clock?: Clock } = {}): Promise<Store> {
    const { url = await this.newUrl(), ...rest } = options;
    const store = await openStore(url, { logger: silentLogger, ...rest });
    this.#open.push(store);
    return store;
  }

  /** Runs one statement directly on the database, for changes that the store never makes. */
  async run(url: string, statement: string): Promise<void> {
    if (this.#kind === 'postgres') {
      const client = new pg.Client({ connectionString: url });
      await client.connect();
      try {
        await client.query(statement);
      } finally {
        await client.end();
      }
      return;
    }
    using database = new DatabaseSync(url.slice('sqlite:'.length));
    database.exec(statement);
  }

  async closeAll(): Promise<void> {
    await Promise.all(this.#open.splice(0).map((store) => store.close()));
  }

  async stop(): Promise<void> {
    await this.closeAll();
    await this.#postgres?.stop();
    if (this.#directory !== undefined) await rm(this.#directory, { recursive: true, force: true });
  }
}
