import { afterAll, beforeAll } from 'vitest';
import { startPostgres, type TestPostgres } from '@drover/control-plane/store/testing';
import { linkSuite } from './suite.ts';

let postgres: TestPostgres;
beforeAll(async () => {
  postgres = await startPostgres();
});
afterAll(() => postgres.stop());

linkSuite('PostgreSQL', () => postgres.createDatabase());
