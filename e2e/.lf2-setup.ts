import { openCertificateAuthority, createKeyAndRequest } from '@drover/pki';
import { newHostId, silentLogger } from '@drover/foundation';
import { openStore } from '@drover/control-plane/store';
import { writeFileSync } from 'node:fs';
const [dir, n] = process.argv.slice(2);
const ca = await openCertificateAuthority(dir + '/ca', { trustDomain: 'drover.test' });
const store = await openStore(dir + '/db.sqlite', { logger: silentLogger });
const { keyPem, csrDer } = await createKeyAndRequest();
const hosts: any[] = [];
for (let i = 0; i < Number(n); i++) {
  const id = newHostId();
  const c = await ca.signHost(id, csrDer);
  await store.hosts.join({ id, name: 'h' + i, labels: {}, certificateExpiresAt: c.notAfter });
  hosts.push({ id, cert: c.certificatePem });
}
await store.close();
const sv = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] });
writeFileSync(dir + '/fleet.json', JSON.stringify({ keyPem, caPem: ca.caPem, hosts, sv }));
