/** Fake hosts with sandboxes that register and hold sessions, in one process. */
import { FakeSandboxes } from '@drover/agent/link/testing';
import { createKeyAndRequest } from '@drover/pki';
import { sandbox } from '@drover/protocol';
import { answerParent } from '../children.ts';
import { startFakeHost, type FakeHost, type FakeIdentity } from '../fake-hosts.ts';
import { FleetInit } from './fleet-init.ts';

const life = new AbortController();
const hosts: FakeHost[] = [];
// One key for all: making keys is not what is measured.
const { keyPem, csrDer } = createKeyAndRequest();

class FleetSandboxes extends FakeSandboxes {
  readonly #inits = new Map<string, FleetInit>();
  host: FakeHost | undefined;
  #last = 0;

  constructor() {
    super();
    this.dialled = async (id) => {
      const found = this.#inits.get(id);
      if (found === undefined) throw new Error(`there is no sandbox ${id}`);
      return found.dial();
    };
  }

  override async create(...args: Parameters<FakeSandboxes['create']>): Promise<sandbox.SandboxObservation> {
    const { host } = this;
    const [{ id: sandboxId, name, generation }] = args;
    if (host === undefined) throw new Error('the host has not started');
    const signed = await host.link.signSandboxCertificate(sandboxId, csrDer, life.signal);
    const peerAddress = `10.0.${this.#last >> 8}.${this.#last++ & 255}`;
    const carry = (connection: Parameters<typeof host.link.carryInbound>[1]): void =>
      host.link.carryInbound({ sandboxId, interface: 'fake', peerAddress }, connection);
    this.#inits.set(sandboxId, new FleetInit({ ...signed, sandboxId, name, keyPem, carry }));
    this.set(sandboxId, {
      address: peerAddress,
      state: sandbox.SandboxState.STARTING,
      generation: BigInt(generation),
      startCount: 1n,
    });
    return await super.create(...args);
  }
}

answerParent({
  connect: ({ identities, address }: { identities: readonly FakeIdentity[]; address: string }) => {
    for (const identity of identities) {
      const sandboxes = new FleetSandboxes();
      sandboxes.host = startFakeHost(identity, address, life.signal, sandboxes);
      hosts.push(sandboxes.host);
    }
  },
  connected: () => hosts.filter(({ link }) => link.connected).length,
});
