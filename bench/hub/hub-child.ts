/** The hub in a process of its own: the real link server and store. Argument: a directory with a CA and a store. */
import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { LinkServer } from '@drover/control-plane/hub';
import { openStore } from '@drover/control-plane/store';
import type { HostId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { openCertificateAuthority } from '@drover/pki';
import { link } from '@drover/protocol';
import { answerParent } from '../children.ts';
import { trustDomain } from '../fake-hosts.ts';
import { callsPerSecond, type Load } from '../load.ts';

const directory = process.argv[2] ?? '';
let server: LinkServer | undefined;
const hosts: HostId[] = [];

answerParent({
  start: async (): Promise<number> => {
    const ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain });
    const store = await openStore(join(directory, 'drover.db'), { logger: silentLogger });
    const identity = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1', '::1'] });
    server = new LinkServer({ store, ca, identity, replica: 'bench' });
    server.on({ hostConnected: (hostId) => hosts.push(hostId) });
    return (await server.listen({ host: '127.0.0.1', port: 0 })).port;
  },
  connected: () => hosts.length,
  run: async ({ hosts: count, inFlight, ms }: Load): Promise<number> => {
    const hub = server;
    if (hub === undefined || hosts.length < count) throw new Error('not all hosts are connected');
    const operation = { case: 'list' as const, value: create(link.ListSandboxesSchema) };
    return await callsPerSecond(async (lane) => await hub.call(hosts[lane % count] as HostId, operation), inFlight, ms);
  },
});
