import { cpSync, mkdtempSync, readFileSync } from 'node:fs';
import { openStore } from '@drover/control-plane/store';
import { silentLogger } from '@drover/foundation';
import { create } from '@bufbuild/protobuf';
import { link } from '@drover/protocol';
const d = mkdtempSync('/tmp/lf2/x.');
cpSync('/tmp/lf2/d', d, { recursive: true });
const f = JSON.parse(readFileSync(d + '/fleet.json', 'utf8'));
const store = await openStore(d + '/db.sqlite', { logger: silentLogger });
const N = 500;
const reg = (id: string) =>
  create(link.RegisterSchema, {
    hostId: id,
    hostname: 'h',
    capacity: { cpuMillis: 1000, memoryBytes: 1n << 30n, diskBytes: 1n << 30n, slots: 10 },
    runtimes: ['fake'],
    bootId: 'b',
  });
for (const round of [1, 2]) {
  const t = performance.now();
  const c = process.cpuUsage();
  await Promise.all(f.hosts.slice(0, N).map((h: any) => store.hosts.register(reg(h.id), 'r1')));
  const u = process.cpuUsage(c);
  console.log('register ms each', ((performance.now() - t) / N).toFixed(2), 'cpu', ((u.user + u.system) / N / 1000).toFixed(2));
}
const t = performance.now();
console.log('down', await store.hosts.markOwnedDown('r1'), ((performance.now() - t) / N).toFixed(2), 'ms each');
await store.close();
process.exit(0);
