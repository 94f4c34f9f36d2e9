import { AgentLink, CredentialsStore } from '@drover/agent/link';
import { FakeSandboxes, noImages, noVolumes } from '@drover/agent/link/testing';
import { newHostId, type HostId } from '@drover/foundation';
import { createKeyAndRequest, openCertificateAuthority } from '@drover/pki';
import { openStore } from '@drover/control-plane/store';
import { silentLogger } from '@drover/foundation/log';
import { join } from 'node:path';

const gib = 2 ** 30;
export const trustDomain = 'drover';

/** What one fake host needs to dial: made before any clock runs. */
export interface FakeIdentity {
  readonly hostId: HostId;
  readonly certificatePem: string;
  readonly keyPem: string;
  readonly caPem: string;
}

/** Signs certificates for `count` hosts with the CA of a control plane's data directory. One key for all: making keys is not what is measured. */
export async function signFakeHosts(dataDirectory: string, count: number): Promise<FakeIdentity[]> {
  const ca = await openCertificateAuthority(join(dataDirectory, 'pki'), { trustDomain });
  const { keyPem, csrDer } = createKeyAndRequest();
  const identities: FakeIdentity[] = [];
  for (let i = 0; i < count; i++) {
    const hostId = newHostId();
    const { certificatePem } = await ca.signHost(hostId, csrDer);
    identities.push({ hostId, certificatePem, keyPem, caPem: ca.caPem });
  }
  return identities;
}

/** The rows of hosts that joined, in a store that no server has open. */
export async function joinFakeHosts(dataDirectory: string, hostIds: readonly HostId[]): Promise<void> {
  const store = await openStore(join(dataDirectory, 'drover.db'), { logger: silentLogger });
  for (const id of hostIds) {
    await store.hosts.join({ id, name: `n-${id.slice(2)}`.slice(0, 40), labels: {}, certificateExpiresAt: Date.now() + 86_400_000 });
  }
  await store.close();
}

export interface FakeHost {
  readonly link: AgentLink;
  readonly sandboxes: FakeSandboxes;
  readonly ended: Promise<unknown>;
}

/** The real host link, with sandboxes in memory behind it. */
export function startFakeHost(identity: FakeIdentity, address: string, signal: AbortSignal, sandboxes = new FakeSandboxes()): FakeHost {
  const agent = new AgentLink({
    // Its directory is only written to by a renewal, which is a day away.
    credentials: new CredentialsStore('/nonexistent', { ...identity, trustDomain, linkAddress: address, labels: {} }),
    sandboxes,
    images: noImages,
    volumes: noVolumes,
    info: {
      describe: () => ({
        hostname: `n-${identity.hostId.slice(2)}`.slice(0, 40),
        labels: {},
        zone: '',
        capacity: { cpuMillis: 64_000, memoryBytes: 256 * gib, diskBytes: 1000 * gib, slots: 10_000 },
        runtimes: ['fake'],
        bootId: 'boot',
      }),
      load: () => ({ loadMilli: 250, memoryAvailableBytes: gib, diskAvailableBytes: gib }),
    },
  });
  return { link: agent, sandboxes, ended: agent.run(signal) };
}
