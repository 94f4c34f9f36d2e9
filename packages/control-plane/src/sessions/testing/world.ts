import { connect as connectTcp, createServer, type AddressInfo, type Socket } from 'node:net';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { createClient } from '@connectrpc/connect';
import { createGrpcTransport, Http2SessionManager } from '@connectrpc/connect-node';
import { canonicalCommonName, systemClock, type Clock, type HostId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { hashSecret, openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { control, link, sandbox } from '@drover/protocol';
import { expect } from 'vitest';
import type { StoredEvent } from '../../events/event.ts';
import { EventFeed } from '../../feed/index.ts';
import type { Hub, TunnelTarget } from '../../hub/hub.ts';
import { Registry } from '../../identity/registry.ts';
import { SandboxListener } from '../../sandbox-facing/index.ts';
import { issue, type Credentials } from '../../sandbox-facing/testing/certificates.ts';
import { openStore } from '../../store/open.ts';
import type { SandboxRow } from '../../model/sandbox.ts';
import type { Store } from '../../store/store.ts';
import { draft, readyHost, seen } from '../../store/testing/fixtures.ts';
import { StoredWorldview } from '../../journal/journal.ts';
import { SessionManager, type SessionManagerOptions } from '../manager.ts';
import { planSource } from '../plan/plan.ts';
import { SecretBox } from '../../secrets/index.ts';
import { Peer, type PeerOptions } from './peer.ts';

/** Polls until the assertion holds, with a timeout for a busy machine. */
export function eventually<T>(probe: () => T): ReturnType<typeof expect.poll<T>> {
  return expect.poll(probe, { timeout: 25_000, interval: 20 });
}

/** A hub whose tunnels lead to inits on this machine. */
export class LocalHub implements Pick<Hub, 'openTunnel' | 'isConnected'> {
  readonly ports = new Map<SandboxId, number>();
  readonly tunnels: Socket[] = [];
  connected = true;
  fail: Error | undefined;
  /** Called when the host reports a sandbox. */
  observed: (id: SandboxId) => void = () => undefined;

  isConnected(): boolean {
    return this.connected;
  }

  async openTunnel(_host: HostId, target: TunnelTarget, signal?: AbortSignal): Promise<Socket> {
    if (this.fail !== undefined) throw this.fail;
    const socket = connectTcp({ port: this.ports.get(target.sandboxId) ?? 1, host: '127.0.0.1', noDelay: true });
    this.tunnels.push(socket);
    try {
      await once(socket, 'connect', { signal });
    } catch (error) {
      socket.destroy();
      throw error;
    }
    return socket;
  }

  /** The host reports the sandbox. */
  observe(id: SandboxId): void {
    this.observed(id);
  }
}

export interface Started {
  readonly id: SandboxId;
  readonly row: SandboxRow;
  readonly credentials: Credentials;
  /** The bootstrap token of its start. */
  readonly token: string;
}

/** Sessions over the real store, registry, worldview, sandbox-facing listener and CA. */
export class World implements AsyncDisposable {
  readonly directory: string;
  readonly clock: Clock;
  readonly ca: CertificateAuthority;
  readonly caKeyPem: string;
  readonly identity: { readonly certificatePem: string; readonly keyPem: string };
  readonly store: Store;
  readonly feed: EventFeed;
  readonly registry: Registry;
  readonly worldview: StoredWorldview;
  readonly listener: SandboxListener;
  readonly secrets = new SecretBox(new Uint8Array(32).fill(1));
  readonly hub = new LocalHub();
  readonly #host: { readonly id: HostId; readonly epoch: number };
  readonly #held = new AsyncDisposableStack();
  #addresses = 1;

  private constructor(parts: Pick<World, 'directory' | 'clock' | 'ca' | 'caKeyPem' | 'identity' | 'store' | 'feed'>, host: World['host']) {
    const { clock, ca, identity, store } = parts;
    this.directory = parts.directory;
    this.clock = clock;
    this.ca = ca;
    this.caKeyPem = parts.caKeyPem;
    this.identity = identity;
    this.store = store;
    this.feed = parts.feed;
    this.hub.observed = this.feed.changed;
    this.#host = host;
    this.worldview = new StoredWorldview({ store, clock, logger: silentLogger });
    this.registry = new Registry({ store, journal: this.worldview, replica: 'replica-1', clock, logger: silentLogger });
    const life = new AbortController();
    const running = this.registry.run(life.signal);
    this.#held.defer(async () => {
      life.abort();
      await running;
    });
    this.listener = new SandboxListener({ store, registry: this.registry, worldview: this.worldview, ca, identity, clock });
  }

  static async open(): Promise<World> {
    const directory = await mkdtemp(join(tmpdir(), 'drover-sessions-'));
    const clock = systemClock;
    const ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain: 'drover.test', clock });
    const caKeyPem = await readFile(join(directory, 'pki', 'ca-key.pem'), 'utf8');
    const identity = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: [] });
    const store = await openStore(join(directory, 'store.sqlite'), { logger: silentLogger, clock });
    const host = await readyHost(store, { slots: 50, cpuMillis: 40_000, memoryBytes: 100 * 1024 ** 3 });
    const feed = await EventFeed.open(store.events, clock, silentLogger);
    return new World({ directory, clock, ca, caKeyPem, identity, store, feed }, host);
  }

  get host(): { readonly id: HostId; readonly epoch: number } {
    return this.#host;
  }

  /** The sessions of a control plane. A further call represents its restart. */
  sessions(options: Partial<SessionManagerOptions> = {}): SessionManager {
    const { store, hub, registry, worldview, ca, identity, clock } = this;
    const manager = new SessionManager({
      store,
      hub,
      registry,
      worldview,
      journal: worldview,
      ca,
      clock,
      tls: { certPem: identity.certificatePem, keyPem: identity.keyPem, caPem: ca.caPem },
      feed: this.feed,
      plans: planSource(store, this.secrets),
      lastRefusal: (id, thumbprint) => this.listener.lastRefusal(id, thumbprint),
      initFailed: async (id, startCount, message) => await store.sandboxes.failInit(id, startCount, message),
      random: () => 0,
      ...options,
    });
    manager.attach();
    this.#held.defer(async () => await manager.closeAll());
    return manager;
  }

  /** A sandbox on the host, in a state that has not been announced yet. */
  async sandbox(options: {
    readonly id?: SandboxId;
    readonly name?: string;
    readonly setup?: MessageInitShape<typeof sandbox.SetupSchema>;
    readonly secrets?: Readonly<Record<string, string>>;
    readonly state?: keyof typeof sandbox.SandboxState;
  }): Promise<SandboxRow> {
    const { secrets = {}, setup, name, state = 'RUNNING' } = options;
    const sandboxDraft = draft({ project: 'test', ...(name === undefined ? {} : { name }), spec: setup === undefined ? {} : { setup } });
    const id = options.id ?? sandboxDraft.id;
    const sealed = Object.entries(secrets).map(([key, value]) => ({ name: key, sealed: this.secrets.seal(id, key, Buffer.from(value)) }));
    const row = await this.store.sandboxes.create({ ...sandboxDraft, id, secrets: sealed });
    if (!(await this.store.sandboxes.place(id, this.host.id))) throw new Error(`${id} was not placed`);
    await this.#observe(row.id, state);
    return await this.row(row.id);
  }

  /** The host observes this state of the sandbox, and reports it. */
  async observe(
    id: SandboxId,
    state: keyof typeof sandbox.SandboxState,
    more: MessageInitShape<typeof sandbox.SandboxObservationSchema> = {},
  ): Promise<void> {
    await this.#observe(id, state, more);
    this.hub.observe(id);
  }

  async #observe(
    id: SandboxId,
    state: keyof typeof sandbox.SandboxState,
    more: MessageInitShape<typeof sandbox.SandboxObservationSchema> = {},
  ): Promise<void> {
    const row = await this.row(id);
    const address = row.address === '' ? `10.9.0.${++this.#addresses}` : row.address;
    await this.store.sandboxes.observe(this.host.id, this.host.epoch, [
      seen(row, state, { address, startCount: BigInt(Math.max(1, row.startCount)), ...more }),
    ]);
  }

  async row(id: SandboxId): Promise<SandboxRow> {
    const row = await this.store.sandboxes.get(id);
    if (row === undefined) throw new Error(`there is no ${id}`);
    return row;
  }

  /** The CA, with another lifetime of sandboxes' certificates. */
  async shortLived(sandboxMs: number): Promise<CertificateAuthority> {
    return await openCertificateAuthority(join(this.directory, 'pki'), { trustDomain: 'drover.test', lifetimes: { sandboxMs } });
  }

  /** The certificate and the token of a start of the sandbox, as its host receives them. */
  async start(row: SandboxRow, ca = this.ca): Promise<Started> {
    const commonName = canonicalCommonName(row.project, row.name);
    const credentials = await issue(async (csrDer) => await ca.signSandbox(row.id, commonName, csrDer));
    return { id: row.id, row, credentials, token: await this.issued(row.id, credentials.thumbprint) };
  }

  async issued(sandboxId: SandboxId, thumbprint: string): Promise<string> {
    return await this.registry.issued({ sandboxId, thumbprint, notAfter: this.clock.now() + 86_400_000 });
  }

  /** An init written by the test, at the end of the sandbox's tunnels. */
  async peer(options: PeerOptions): Promise<Peer> {
    const peer = this.#held.use(new Peer(options));
    this.hub.ports.set(options.id, await peer.listen());
    return peer;
  }

  /** A running sandbox and its init, which registers on request. */
  async box(
    options: Parameters<World['sandbox']>[0] & Pick<PeerOptions, 'behave' | 'hello'> & { readonly ca?: CertificateAuthority } = {},
  ): Promise<Started & { readonly peer: Peer }> {
    const started = await this.start(await this.sandbox(options), options.ca);
    const peer = await this.peer({ ...options, id: started.id, credentials: started.credentials });
    peer.behave = {
      registerRequired: async (request, session) => {
        const again = request.payload.case === 'registerRequired' ? request.payload.value.bootstrapToken : '';
        try {
          await this.register(started, again === '' ? started.token : again);
          peer.good(request, session);
        } catch (error) {
          session.refuse(request.id, 'permission-denied', String(error));
        }
      },
      ...options.behave,
    };
    return { ...started, peer };
  }

  /** Registers a certificate directly, as if its sandbox had registered before. */
  async admit(row: SandboxRow, thumbprint: string): Promise<void> {
    const outcome = await this.registry.register({
      sandboxId: row.id,
      thumbprint,
      commonName: canonicalCommonName(row.project, row.name),
      project: row.project,
      name: row.name,
      tokenHash: hashSecret(await this.issued(row.id, thumbprint)),
      hostId: this.host.id,
      peerAddress: row.address,
    });
    if (outcome.kind !== 'welcome') throw new Error(`${row.id} was not admitted: ${JSON.stringify(outcome)}`);
  }

  /** Calls Register as an init does, by default from the sandbox's own address. @throws {ConnectError} */
  async register({ row, credentials }: Started, token: string, peerAddress = row.address): Promise<void> {
    const { id } = row;
    const server = createServer((socket) => {
      this.listener.accept(this.host.id, create(link.SandboxInboundSchema, { sandboxId: id, interface: 'dv1', peerAddress }), socket);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const baseUrl = `https://localhost:${(server.address() as AddressInfo).port}`;
    const { certificatePem: cert, keyPem: key } = credentials;
    const manager = new Http2SessionManager(baseUrl, {}, { cert, key, ca: this.ca.caPem });
    try {
      const client = createClient(control.ControlService, createGrpcTransport({ baseUrl, sessionManager: manager }));
      await client.register({ project: row.project, name: row.name }, { headers: { authorization: `Bearer ${token}` } });
    } finally {
      manager.abort();
      server.close();
    }
  }

  /** The session, identity and init events of a subject so far. */
  async events(subject: string): Promise<readonly StoredEvent[]> {
    await this.worldview.flush();
    const all = await this.store.events.after(0, 10_000, { kinds: ['session', 'identity', 'init'], subject });
    return all.map(({ data: { project: _project, name: _name, ...data }, ...event }) => ({ ...event, data }));
  }

  /** The types of its events so far. */
  async eventTypes(subject: string): Promise<readonly string[]> {
    return (await this.events(subject)).map(({ type }) => type);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#held.disposeAsync();
    await this.listener.close();
    await this.worldview.close();
    await this.feed.close();
    await this.store.close();
    await rm(this.directory, { recursive: true, force: true });
  }
}
