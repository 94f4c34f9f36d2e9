import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { newHostId, systemClock, type Clock, type HostId, type Logger, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { link, sandbox } from '@drover/protocol';
import { DroverClient } from '@drover/sdk';
import { changesIdentity, Registry } from '../../identity/index.ts';
import { Placement } from '../../placement/index.ts';
import { Volumes } from '../../volumes/index.ts';
import { SecretBox } from '../../secrets/index.ts';
import { openStore } from '../../store/open.ts';
import type { Store } from '../../store/store.ts';
import { StoredWorldview } from '../../journal/journal.ts';
import { openAdminToken, startApi, type ApiServer } from '../index.ts';
import { EventFeed } from '../../feed/index.ts';
import { FakeHub, FakeSessions } from './fakes.ts';

/** The API over real TLS with a real store; hosts and inits are the test's. */
export interface TestApi extends AsyncDisposable {
  readonly directory: string;
  readonly store: Store;
  readonly hub: FakeHub;
  readonly sessions: FakeSessions;
  readonly worldview: StoredWorldview;
  readonly ca: CertificateAuthority;
  readonly url: string;
  readonly token: string;
  readonly client: DroverClient;
  /** The API alone goes; the store stays. */
  stop(): Promise<void>;
  /** The API again, on the same port. */
  restart(): Promise<void>;
  /** A host that is connected and has room. */
  addHost(name: string, room?: { readonly cpuMillis?: number; readonly memoryBytes?: number }): Promise<HostId>;
  /** What the host reports of a sandbox. */
  observe(hostId: HostId, id: SandboxId | string, seen: MessageInitShape<typeof sandbox.SandboxObservationSchema>): Promise<void>;
}

export interface TestApiOptions {
  readonly logger?: Logger;
  readonly clock?: Clock;
  /** Default: a new SQLite database. */
  readonly storeUrl?: string;
}

export async function startTestApi(options: TestApiOptions = {}): Promise<TestApi> {
  const { logger = silentLogger, clock = systemClock } = options;
  const directory = await mkdtemp(join(tmpdir(), 'drover-api-'));
  const store = await openStore(options.storeUrl ?? join(directory, 'drover.db'), { logger });
  const ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain: 'test.drover' });
  const identity = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] });
  const token = await openAdminToken(directory, store.tokens);
  const hub = new FakeHub();
  const sessions = new FakeSessions();
  const secrets = await SecretBox.open(join(directory, 'pki', 'secrets.key'));
  const feed = await EventFeed.open(store.events, clock, logger);
  const worldview = new StoredWorldview({ store, clock, logger });
  const registry = new Registry({ store, journal: worldview, feed, replica: 'test', clock, logger });
  feed.listen((subject, event) => {
    if (event !== undefined && changesIdentity(event)) sessions.redial(subject as SandboxId);
  });
  const life = new AbortController();
  const watching = registry.run(life.signal);
  const context = {
    store,
    hub,
    secrets,
    sessions,
    ca,
    clock,
    logger,
    feed,
    registry,
    placement: new Placement({ store, clock, logger }),
    volumes: new Volumes({ store, hub, logger }),
    system: { trustDomain: 'test.drover', startedAt: Date.now(), linkAddress: ':7444', apiAddress: 'https://127.0.0.1:7443' },
  };
  const start = (port: number): Promise<ApiServer> => startApi(context, { host: '127.0.0.1', port, identity });
  let server: ApiServer | undefined = await start(0);
  const { port } = server;
  const url = `https://127.0.0.1:${port}`;
  const client = new DroverClient({ server: url, token, caPem: ca.caPem });
  const epochs = new Map<HostId, number>();
  let sequence = 0n;
  const stop = async (): Promise<void> => {
    await server?.close();
    server = undefined;
  };
  return {
    directory,
    store,
    hub,
    sessions,
    worldview,
    ca,
    url,
    token,
    client,
    stop,
    restart: async () => {
      server = await start(port);
    },
    addHost: async (name, { cpuMillis = 8_000, memoryBytes = 16 * 1024 ** 3 } = {}) => {
      const id = newHostId();
      await store.hosts.join({ id, name, labels: {}, certificateExpiresAt: Date.now() + 3_600_000 });
      const capacity = create(link.CapacitySchema, { cpuMillis, memoryBytes: BigInt(memoryBytes), slots: 100 });
      const registration = create(link.RegisterSchema, { hostId: id, hostname: name, capacity, runtimes: ['oci'], agentVersion: '0.1.0' });
      const { epoch } = await store.hosts.register(registration, 'test');
      epochs.set(id, epoch);
      hub.hosts.set(id, () => ({ case: undefined }));
      return id;
    },
    observe: async (hostId, id, seen) => {
      const row = await store.sandboxes.get(id as SandboxId);
      sequence++;
      const observation = create(sandbox.SandboxObservationSchema, {
        ...seen,
        sandboxId: id,
        generation: BigInt(row?.generation ?? 0),
        sequence,
        startCount: seen.startCount ?? 1n,
      });
      await store.sandboxes.observe(hostId, epochs.get(hostId) ?? 0, [observation]);
    },
    [Symbol.asyncDispose]: async () => {
      client.close();
      await stop();
      await feed.close();
      life.abort();
      await watching;
      await worldview.close();
      await store.close();
      await rm(directory, { recursive: true });
    },
  };
}
