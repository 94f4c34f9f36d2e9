/** Many fake hosts, or bare gRPC clients, in one process. */
import { answerParent } from '../children.ts';
import { bareClient } from '../bare-grpc.ts';
import { startFakeHost, type FakeHost, type FakeIdentity } from '../fake-hosts.ts';

const life = new AbortController();
const hosts: FakeHost[] = [];
const bare: ReturnType<typeof bareClient>[] = [];

answerParent({
  connect: ({ identities, address }: { identities: readonly FakeIdentity[]; address: string }) => {
    for (const identity of identities) hosts.push(startFakeHost(identity, address, life.signal));
  },
  connected: () => hosts.filter(({ link }) => link.connected).length,
  bare: ({ identities, port }: { identities: readonly FakeIdentity[]; port: number }) => {
    for (const identity of identities) bare.push(bareClient(port, identity));
    // A stream is only opened when something is sent.
    for (const { call } of bare) call.write({ $typeName: 'drover.link.v1.HostFrame', frame: { case: undefined } });
  },
});
