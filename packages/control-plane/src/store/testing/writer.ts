import { silentLogger } from '@drover/foundation/log';
import { openStore } from '../open.ts';
import { draft, readyHost, seen } from './fixtures.ts';

/** A child process of the durability test: writes sandboxes until it is killed, and prints the id of each acknowledged one. */
const store = await openStore(process.argv[2] ?? '', { logger: silentLogger });
const host = await readyHost(store, { slots: 1_000_000, cpuMillis: 4_000_000_000, memoryBytes: 2 ** 50 });
for (;;) {
  const row = await store.sandboxes.create(draft({ name: `n${process.pid}-${Math.random().toString(36).slice(2)}` }));
  await store.sandboxes.place(row.id, host.id);
  await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'RUNNING')]);
  process.stdout.write(`${row.id}\n`);
}
