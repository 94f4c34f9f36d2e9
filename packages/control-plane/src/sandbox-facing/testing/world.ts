import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect as connectTcp, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';
import { create } from '@bufbuild/protobuf';
import { canonicalCommonName, parseName, parseProject, systemClock, type Clock, type HostId, type SandboxId } from '@drover/foundation';
import { createLogger, silentLogger } from '@drover/foundation/log';
import { openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { link } from '@drover/protocol';
import { EventFeed } from '../../feed/index.ts';
import { Registry } from '../../identity/registry.ts';
import { openStore } from '../../store/open.ts';
import type { Store } from '../../store/store.ts';
import { draft, readyHost, seen } from '../../store/testing/fixtures.ts';
import type { TrustCheck } from '../../worldview/worldview.ts';
import { SandboxListener } from '../index.ts';
import { issue, signByHand, type Credentials, type Leaf } from './certificates.ts';

/** The origin of a connection, as its host reports it. */
export interface Origin {
  readonly hostId: HostId;
  readonly sandboxId: string;
  readonly interface: string;
  readonly peerAddress: string;
}

/** A started sandbox, with its certificate and its bootstrap token. */
export interface Box {
  readonly id: SandboxId;
  readonly project: string;
  readonly name: string;
  readonly origin: Origin;
  readonly credentials: Credentials;
  readonly token: string;
}

export interface WorldOptions {
  readonly clock?: Clock;
  /** Of the certificate authority. */
  readonly authorityClock?: Clock;
  readonly sandboxLifetimeMs?: number;
}

export interface TlsOptions extends Omit<ConnectionOptions, 'cert' | 'key'> {
  readonly credentials?: Credentials | undefined;
}

/** The listener behind real sockets, with the real store, registry and CA. */
export class World implements AsyncDisposable {
  readonly directory: string;
  readonly store: Store;
  readonly ca: CertificateAuthority;
  readonly registry: Registry;
  readonly listener: SandboxListener;
  readonly clock: Clock;
  /** The checks recorded in the worldview, by sandbox. */
  readonly recorded = new Map<SandboxId, readonly TrustCheck[]>();
  /** The log lines of the listener. */
  readonly log: Record<string, unknown>[] = [];
  readonly #server: Server;
  readonly #arrivals = new Map<number | undefined, PromiseWithResolvers<Socket>>();
  readonly #sockets = new Set<Socket>();
  readonly #closers: (() => Promise<void>)[] = [];
  #boxes = 1;

  private constructor(
    directory: string,
    store: Store,
    ca: CertificateAuthority,
    registry: Registry,
    clock: Clock,
    identity: { certificatePem: string; keyPem: string },
  ) {
    this.directory = directory;
    this.store = store;
    this.ca = ca;
    this.clock = clock;
    this.registry = registry;
    const destination = { write: (line: string) => void this.log.push(JSON.parse(line) as Record<string, unknown>) };
    this.listener = new SandboxListener({
      store,
      registry: this.registry,
      worldview: { record: (id, checks) => void this.recorded.set(id, checks) },
      ca,
      identity,
      clock,
      logger: createLogger({ name: 'test', level: 'trace', destination }),
    });
    this.#server = createServer((socket) => {
      this.#arrival(socket.remotePort).resolve(socket);
    });
  }

  static async open(options: WorldOptions = {}): Promise<World> {
    const directory = await mkdtemp(join(tmpdir(), 'drover-sandbox-facing-'));
    const { clock = systemClock, authorityClock = clock, sandboxLifetimeMs } = options;
    const ca = await openCertificateAuthority(join(directory, 'pki'), {
      trustDomain: 'drover.test',
      clock: authorityClock,
      lifetimes: { ...(sandboxLifetimeMs !== undefined && { sandboxMs: sandboxLifetimeMs }) },
    });
    const store = await openStore(join(directory, 'store.sqlite'), { logger: silentLogger, clock });
    const identity = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: [] });
    const feed = await EventFeed.open(store.events, systemClock, silentLogger);
    const journal = { publish: () => undefined };
    const registry = new Registry({ store, journal, feed, replica: 'replica-1', clock, logger: silentLogger });
    const world = new World(directory, store, ca, registry, clock, identity);
    const life = new AbortController();
    const running = registry.run(life.signal);
    world.#closers.push(async () => {
      life.abort();
      await running;
      await feed.close();
    });
    world.#server.listen(0, '127.0.0.1');
    await once(world.#server, 'listening');
    return world;
  }

  get authorityDirectory(): string {
    return join(this.directory, 'pki');
  }

  /** A leaf that the CA would not issue. */
  async signByHand(leaf: Leaf): Promise<Credentials> {
    return await signByHand(this.ca, this.authorityDirectory, leaf);
  }

  async host(): Promise<{ readonly id: HostId; readonly epoch: number }> {
    return await readyHost(this.store, { slots: 50, cpuMillis: 40_000, memoryBytes: 100 * 1024 ** 3 });
  }

  /** A running sandbox, with the certificate and the token of its start, as its host would have received them. */
  async box(
    host: { readonly id: HostId; readonly epoch: number },
    options: { readonly project?: string; readonly name?: string } = {},
  ): Promise<Box> {
    const wanted = draft({ project: 'red', ...options });
    const row = await this.store.sandboxes.create(wanted);
    if (!(await this.store.sandboxes.place(row.id, host.id))) throw new Error(`${row.id} was not placed`);
    const number = ++this.#boxes;
    const address = `10.9.${number >> 8}.${number & 255}`;
    await this.store.sandboxes.observe(host.id, host.epoch, [seen(row, 'RUNNING', { address })]);
    const origin = { hostId: host.id, sandboxId: row.id, interface: `dv${number}`, peerAddress: address };
    return { id: row.id, project: row.project, name: row.name, origin, ...(await this.start(row)) };
  }

  /** Starts the sandbox: issues a new certificate, which the registry holds valid until `notAfter`, and its token. */
  async start(
    row: { readonly id: SandboxId; readonly project: string; readonly name: string },
    notAfter?: number,
  ): Promise<{ readonly credentials: Credentials; readonly token: string }> {
    const commonName = canonicalCommonName(parseProject(row.project), parseName(row.name));
    const credentials = await issue(async (csrDer) => await this.ca.signSandbox(row.id, commonName, csrDer));
    return { credentials, token: await this.issued(row.id, credentials, notAfter) };
  }

  /** Records the certificate as issued for a start of the sandbox. @returns its bootstrap token */
  async issued(sandboxId: SandboxId, { thumbprint }: Credentials, notAfter = this.clock.now() + 3_600_000): Promise<string> {
    return await this.registry.issued({ sandboxId, thumbprint, notAfter, csrDer: randomBytes(32) });
  }

  /** A TCP connection that the listener accepts as one from `origin`. */
  async socket(origin: Origin): Promise<Socket> {
    const socket = connectTcp({ port: (this.#server.address() as AddressInfo).port, host: '127.0.0.1' });
    socket.on('error', () => undefined);
    this.#sockets.add(socket);
    await once(socket, 'connect');
    const arrived = await this.#arrival(socket.localPort).promise;
    this.#arrivals.delete(socket.localPort);
    const { hostId, ...inbound } = origin;
    this.listener.accept(hostId, create(link.SandboxInboundSchema, inbound), arrived);
    return socket;
  }

  /** The server's end of the connection from that port, whichever side sees it first. */
  #arrival(port: number | undefined): PromiseWithResolvers<Socket> {
    const arrival = this.#arrivals.get(port) ?? Promise.withResolvers<Socket>();
    this.#arrivals.set(port, arrival);
    return arrival;
  }

  /** A TLS connection as a sandbox makes it. @throws the error of the handshake */
  async connect(origin: Origin, { credentials, ...options }: TlsOptions = {}): Promise<TLSSocket> {
    const socket = connect({
      socket: await this.socket(origin),
      ca: this.ca.caPem,
      servername: 'localhost',
      ALPNProtocols: ['http/1.1'],
      ...(credentials !== undefined && { cert: credentials.certificatePem, key: credentials.keyPem }),
      ...options,
    });
    await once(socket, 'secureConnect');
    return socket;
  }

  async as({ origin, credentials }: Pick<Box, 'origin' | 'credentials'>, protocol: 'h2' | 'http/1.1' = 'http/1.1'): Promise<TLSSocket> {
    return await this.connect(origin, { credentials, ALPNProtocols: [protocol] });
  }

  /** Why the calls from this origin were refused so far, in order. */
  refusals(origin: Origin): readonly unknown[] {
    return this.log.filter((line) => line['code'] === 'permission-denied' && line['interface'] === origin.interface).map(({ why }) => why);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await this.listener.close();
    for (const close of this.#closers) await close();
    await this.store.close();
    await rm(this.directory, { recursive: true, force: true });
  }
}
