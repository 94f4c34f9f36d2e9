import { openCertificateAuthority } from '@drover/pki';
import { silentLogger } from '@drover/foundation';
import { openStore } from '@drover/control-plane/store';
import { LinkServer } from '@drover/control-plane/hub';
import { readFileSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
const [dir, port, keys] = process.argv.slice(2);
const ca = await openCertificateAuthority(dir + '/ca', { trustDomain: 'drover.test' });
const store = await openStore(dir + '/db.sqlite', { logger: silentLogger });
const server = new LinkServer({ store, ca, replica: 'r1', logger: silentLogger, ...(keys ? { ticketKeys: Buffer.from(keys, 'hex') } : {}) });
const got = await server.listen({ host: '127.0.0.1', port: Number(port) });
process.send!({ port: got.port });
process.on('message', () => {
  global.gc?.(); global.gc?.();
  const m = process.memoryUsage();
  const priv = /Private_Dirty:\s+(\d+)/.exec(readFileSync('/proc/self/smaps_rollup', 'utf8'))![1];
  process.send!({ hosts: server.stats(), rss: m.rss, heap: m.heapUsed, ext: m.external, priv: Number(priv) * 1024, cpu: process.cpuUsage() });
});
