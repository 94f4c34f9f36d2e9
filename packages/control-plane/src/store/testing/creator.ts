import { StatementSync } from 'node:sqlite';
import { silentLogger } from '@drover/foundation/log';
import { placeSandbox } from '../../placement/index.ts';
import { openStore } from '../open.ts';
import { draft } from './fixtures.ts';

/**
 * A child process of the durability test. Creates one sandbox with an idempotency key, and kills itself before the SQL statement with the
 * given number, counted from the start of the call; if the number is larger than the number of statements, after the commit. With 0 it
 * survives, and prints the number of statements.
 */
const [, , url = '', dieBefore = '0'] = process.argv;
const store = await openStore(url, { logger: silentLogger });

let statements = 0;
for (const method of ['all', 'run', 'iterate'] as const) {
  const original = StatementSync.prototype[method] as (this: StatementSync, ...parameters: unknown[]) => unknown;
  Object.defineProperty(StatementSync.prototype, method, {
    value(this: StatementSync, ...parameters: unknown[]): unknown {
      if (++statements === Number(dieBefore)) process.kill(process.pid, 'SIGKILL');
      return original.apply(this, parameters);
    },
  });
}

await store.idempotency.once('key', 'CreateSandbox', new Uint8Array([1]), async (tables) => {
  const row = await tables.sandboxes.create(draft({ name: 'once' }));
  return new TextEncoder().encode((await placeSandbox(tables, row)).id);
});
if (Number(dieBefore) > 0) process.kill(process.pid, 'SIGKILL');
process.stdout.write(String(statements));
