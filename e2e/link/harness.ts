import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { AgentLink, CredentialsStore, saveIdentity, type AgentLinkOptions, type HostIdentity } from '@drover/agent/link';
import { FakeSandboxes, noImages, noVolumes } from '@drover/agent/link/testing';
import { LinkServer, type LinkServerOptions } from '@drover/control-plane/hub';
import type { HostRow, SandboxRow } from '@drover/control-plane/model';
import { openStore, type Store } from '@drover/control-plane/store';
import { newHostId, newSandboxId, parseName, parseProject, type HostId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { createKeyAndRequest, openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { link, methodDefinition, sandbox } from '@drover/protocol';
import { Client, credentials, type ClientDuplexStream, type StatusObject } from '@grpc/grpc-js';

export const gib = 1024 ** 3;
export const hostCapacity = { cpuMillis: 4_000, memoryBytes: 8 * gib, diskBytes: 100 * gib, slots: 10 };

/** Waits for a condition. A failure names it. */
export async function until(description: string, condition: () => boolean | Promise<boolean>, ms = 15_000): Promise<void> {
  const end = Date.now() + ms;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`still not so after ${ms} ms: ${description}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** A TCP relay in front of the link. It can cut connections, refuse them, and stop forwarding to the host. */
export class Relay {
  readonly #server: Server;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  #port = 0;
  refusing = false;

  constructor(target: () => number) {
    this.#server = createServer((near) => {
      if (this.refusing) {
        near.destroy();
        return;
      }
      const far = connect(target(), '127.0.0.1');
      const pair = [near, far] as const;
      this.#pairs.add(pair);
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        from.pipe(to);
        from.on('error', () => to.destroy());
        from.on('close', () => {
          to.destroy();
          this.#pairs.delete(pair);
        });
      }
    });
  }

  async start(): Promise<void> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  get address(): string {
    return `127.0.0.1:${this.#port}`;
  }

  get connections(): number {
    return this.#pairs.size;
  }

  cut(): void {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
  }

  /** Stops forwarding to the host until `release`. */
  hold(): void {
    for (const [near, far] of this.#pairs) far.unpipe(near);
  }

  release(): void {
    for (const [near, far] of this.#pairs) far.pipe(near);
  }

  async close(): Promise<void> {
    this.cut();
    this.#server.close();
    await once(this.#server, 'close');
  }
}

export interface RunningHost {
  readonly id: HostId;
  readonly link: AgentLink;
  readonly sandboxes: FakeSandboxes;
  readonly relay: Relay;
  readonly credentials: CredentialsStore;
  readonly ended: Promise<'aborted' | 'removed'>;
  stop(): Promise<void>;
}

type FrameValue<C> = Extract<link.ControlFrame['frame'], { case: C }>['value'];

/** A host that writes frames by hand, to violate the protocol. */
export class RawHost {
  readonly call: ClientDuplexStream<link.HostFrame, link.ControlFrame>;
  readonly frames: link.ControlFrame['frame'][] = [];
  readonly status: Promise<StatusObject>;
  readonly client: Client;

  constructor(client: Client) {
    const method = methodDefinition(link.HostLinkService.method.connect);
    this.client = client;
    this.call = client.makeBidiStreamRequest(method.path, method.requestSerialize, method.responseDeserialize);
    this.call.on('data', ({ frame }: link.ControlFrame) => this.frames.push(frame));
    this.call.on('error', () => undefined);
    this.status = new Promise((resolve) => this.call.on('status', resolve));
  }

  send(frame: NonNullable<Parameters<typeof create<typeof link.HostFrameSchema>>[1]>['frame'] & object): void {
    this.call.write(create(link.HostFrameSchema, { frame }));
  }

  register(hostId: string, sandboxes: sandbox.SandboxObservation[] = []): void {
    const { cpuMillis, memoryBytes, diskBytes, slots } = hostCapacity;
    const capacity = { cpuMillis, memoryBytes: BigInt(memoryBytes), diskBytes: BigInt(diskBytes), slots };
    this.send({ case: 'register', value: { hostId, hostname: 'raw', capacity, runtimes: ['fake'], bootId: 'boot', sandboxes } });
  }

  async frame<C extends NonNullable<link.ControlFrame['frame']['case']>>(which: C): Promise<FrameValue<C>> {
    await until(`a ${which} frame`, () => this.frames.some((frame) => frame.case === which));
    const at = this.frames.findIndex((frame) => frame.case === which);
    return this.frames.splice(at, 1)[0]?.value as FrameValue<C>;
  }
}

async function newIdentity(ca: CertificateAuthority): Promise<LinkServerOptions['identity']> {
  return await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1', '::1'] });
}

/** A store, a CA and a link server, with the hosts and clients made on them. Disposing of it closes all of them. */
export class World {
  readonly directory: string;
  readonly store: Store;
  readonly ca: CertificateAuthority;
  readonly options: Partial<LinkServerOptions> & Pick<LinkServerOptions, 'identity'>;
  readonly #closers: (() => Promise<void> | void)[] = [];
  server: LinkServer;
  port = 0;

  private constructor(directory: string, store: Store, ca: CertificateAuthority, options: World['options']) {
    this.directory = directory;
    this.store = store;
    this.ca = ca;
    this.options = options;
    this.server = this.newServer();
  }

  static async open(
    storeUrl: (directory: string) => string | Promise<string>,
    options: Partial<LinkServerOptions> & { readonly hostLifetimeMs?: number; readonly controlPlaneLifetimeMs?: number } = {},
  ): Promise<World> {
    const directory = await mkdtemp(join(tmpdir(), 'drover-link-'));
    const { hostLifetimeMs, controlPlaneLifetimeMs, ...rest } = options;
    const ca = await openCertificateAuthority(join(directory, 'ca'), {
      trustDomain: 'drover.test',
      lifetimes: {
        ...(hostLifetimeMs === undefined ? {} : { hostMs: hostLifetimeMs }),
        ...(controlPlaneLifetimeMs === undefined ? {} : { controlPlaneMs: controlPlaneLifetimeMs }),
      },
    });
    const clock = options.clock === undefined ? {} : { clock: options.clock };
    const store = await openStore(await storeUrl(directory), { logger: silentLogger, ...clock });
    const world = new World(directory, store, ca, { ...rest, identity: await newIdentity(ca) });
    ({ port: world.port } = await world.server.listen({ host: '127.0.0.1', port: 0 }));
    return world;
  }

  /** Replaces the server's certificate. */
  async rotate(): Promise<void> {
    this.server.rotate(await newIdentity(this.ca));
  }

  newServer(replica = 'replica-1'): LinkServer {
    return new LinkServer({ store: this.store, ca: this.ca, replica, ...this.options });
  }

  /** Simulates a restart of the control plane: a new server uses the same store and address. */
  async restart(): Promise<void> {
    await this.server.close();
    this.server = this.newServer();
    await this.server.listen({ host: '127.0.0.1', port: this.port });
  }

  onClose(closer: () => Promise<void> | void): void {
    this.#closers.push(closer);
  }

  async identity(id: HostId = newHostId()): Promise<HostIdentity> {
    const { keyPem, csrDer } = createKeyAndRequest();
    const { certificatePem, notAfter } = await this.ca.signHost(id, csrDer);
    await this.store.hosts.join({ id, name: `n-${id.slice(2, 8)}`, labels: {}, certificateExpiresAt: notAfter });
    const { caPem, names } = this.ca;
    return { hostId: id, trustDomain: names.trustDomain, linkAddress: `127.0.0.1:${this.port}`, labels: {}, keyPem, certificatePem, caPem };
  }

  /** Starts a real agent with sandboxes in memory. Its reconnects have almost no backoff by default. */
  async host(options: Partial<AgentLinkOptions> = {}): Promise<RunningHost> {
    const identity = await this.identity();
    const stateDir = join(this.directory, identity.hostId);
    await saveIdentity(stateDir, identity);
    const credentialsStore = await CredentialsStore.open(stateDir);
    const relay = new Relay(() => this.port);
    await relay.start();
    const sandboxes = new FakeSandboxes();
    const agent = new AgentLink({
      credentials: credentialsStore,
      address: relay.address,
      sandboxes,
      images: noImages,
      volumes: noVolumes,
      random: () => 0.02,
      info: {
        describe: () => ({
          hostname: `n-${identity.hostId.slice(2, 8)}`,
          labels: {},
          zone: '',
          capacity: hostCapacity,
          runtimes: ['fake'],
          bootId: 'boot',
        }),
        load: () => ({ loadMilli: 250, memoryAvailableBytes: gib, diskAvailableBytes: gib }),
      },
      ...options,
    });
    const life = new AbortController();
    const ended = agent.run(life.signal);
    const stop = async (): Promise<void> => {
      life.abort();
      await ended;
    };
    this.onClose(async () => {
      await stop();
      await relay.close();
    });
    return { id: identity.hostId, link: agent, sandboxes, relay, credentials: credentialsStore, ended, stop };
  }

  async raw(identity: HostIdentity, port = this.port): Promise<RawHost> {
    return new RawHost(this.client(identity, port));
  }

  /** Returns grpc-js's own client. It dials by name, because Node refuses an address as a TLS server name. */
  client(identity: Pick<HostIdentity, 'caPem'> & Partial<Pick<HostIdentity, 'keyPem' | 'certificatePem'>>, port = this.port): Client {
    const { caPem, keyPem, certificatePem } = identity;
    const [key, certificate] = [keyPem, certificatePem].map((pem) => (pem === undefined ? null : Buffer.from(pem)));
    const tls = credentials.createSsl(Buffer.from(caPem), key ?? null, certificate ?? null, { checkServerIdentity: () => undefined });
    const client = new Client(`localhost:${port}`, tls, { 'grpc.use_local_subchannel_pool': 1 });
    this.onClose(() => client.close());
    return client;
  }

  async connected(host: { readonly id: HostId }): Promise<HostRow> {
    await until(`${host.id} is connected`, () => this.server.isConnected(host.id));
    return await this.row(host.id);
  }

  async row(id: HostId): Promise<HostRow> {
    const row = await this.store.hosts.get(id);
    if (row === undefined) throw new Error(`no row for ${id}`);
    return row;
  }

  /** Adds a sandbox row that requests `cpuMillis`, placed on a host if one is given. */
  async sandbox(options: { readonly hostId?: HostId; readonly cpuMillis?: number; readonly name?: string } = {}): Promise<SandboxRow> {
    const id = newSandboxId();
    const request = { cpuMillis: options.cpuMillis ?? 500, memoryBytes: gib / 4, slots: 1 };
    await this.store.sandboxes.create({
      id,
      project: parseProject('red'),
      name: parseName(options.name ?? id),
      spec: create(sandbox.SandboxSpecSchema, { image: 'host' }),
      labels: {},
      request,
    });
    if (options.hostId !== undefined && !(await this.store.sandboxes.place(id, options.hostId))) throw new Error(`${id} was not placed`);
    const row = await this.store.sandboxes.get(id);
    if (row === undefined) throw new Error(`no row for ${id}`);
    return row;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const closer of this.#closers.reverse()) await closer();
    await this.server.close();
    await this.store.close();
    await rm(this.directory, { recursive: true, force: true });
  }
}
