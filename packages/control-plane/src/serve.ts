import { isIP } from 'node:net';
import { hostname, networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { DroverError, hasCode, systemClock, type Clock, type Logger } from '@drover/foundation';
import { openCertificateAuthority, renewAt, type CertificateAuthority } from '@drover/pki';
import { openAdminToken, startApi, type ServerIdentity, type SystemFacts } from './api/index.ts';
import { EventFeed } from './feed/index.ts';
import { DataDirectory } from './data-directory.ts';
import { LinkServer, type Observation } from './hub/index.ts';
import { SqlRegistry } from './identity/index.ts';
import { Placement } from './placement/index.ts';
import { Reconciler, Upkeep } from './reconcile/index.ts';
import { SandboxListener } from './sandbox-facing/index.ts';
import { CrashBreaker, planSource, SessionManager, type SessionCredentials } from './sessions/index.ts';
import { certificateCheckMs } from './limits.ts';
import { SecretBox } from './secrets/index.ts';
import { openStore, type Store } from './store/index.ts';
import { Volumes } from './volumes/index.ts';
import { StoredWorldview } from './journal/index.ts';

export interface ControlPlaneOptions {
  /** Holds the CA, the admin's token and, without `store`, the database. One server at a time. */
  readonly dataDirectory: string;
  /** `postgres://…`, or a path; default `<dataDirectory>/drover.db`. */
  readonly store?: string;
  /** Port 0 takes the port of the last start, or a free one. */
  readonly listen: ListenAddress;
  readonly linkListen: ListenAddress;
  /** The name or address under which hosts and clients reach this server; default the address that it listens on. */
  readonly publicHost?: string;
  /** More names and addresses for the certificates. */
  readonly dnsNames?: readonly string[];
  readonly ipAddresses?: readonly string[];
  /** Default `drover`. Fixed at the first start. */
  readonly trustDomain?: string;
  /** A host silent for this long is down (L-10), ms; it beats three times as often. Default 30 s. */
  readonly hostTtlMs?: number;
  /** A host down for this long makes its sandboxes lost (L-26), ms. Default 60 s. */
  readonly lostGraceMs?: number;
  /** How the server before this one ended, where its service manager knows: a signal's name or an exit status. */
  readonly lastEnd?: string;
  readonly logger: Logger;
  readonly clock?: Clock;
  /** Stops the server, as `close` does. */
  readonly signal?: AbortSignal;
}

export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

export interface ControlPlane {
  /** `https://host:port` of the API. */
  readonly address: string;
  /** `host:port` of the host link. */
  readonly linkAddress: string;
  readonly caPem: string;
  /** SHA-256, lower-case hex. */
  readonly caFingerprint: string;
  readonly adminToken: string;
  /** Takes nothing new, tells the hosts to come back, ends sessions, closes the store. Sandboxes run on. */
  close(): Promise<void>;
}

/**
 * Starts a control plane: everything is opened, or nothing is left behind.
 * @throws {DroverError} invalid-config for credentials or state that cannot be read (I-28); failed-precondition when another server
 *   has the directory; port-in-use; missing-privilege; unavailable when the store cannot be opened
 */
export async function startControlPlane(options: ControlPlaneOptions): Promise<ControlPlane> {
  const opened = new AsyncDisposableStack();
  try {
    const running = await start(options, opened);
    const held = opened.move();
    let closing: Promise<void> | undefined;
    const close = (): Promise<void> => (closing ??= held.disposeAsync());
    if (options.signal?.aborted === true) await close();
    options.signal?.addEventListener(
      'abort',
      () => {
        close().catch((error: unknown) => options.logger.error({ err: error }, 'the server did not stop cleanly'));
      },
      { once: true },
    );
    return { ...running, close };
  } catch (error) {
    await opened.disposeAsync();
    throw DroverError.from(error);
  }
}

/** Opens the parts in order; `opened` closes them the other way round. */
async function start(options: ControlPlaneOptions, opened: AsyncDisposableStack): Promise<Omit<ControlPlane, 'close'>> {
  const { logger, clock = systemClock, trustDomain = 'drover' } = options;
  const startedAt = clock.now();
  const directory = await DataDirectory.open(options.dataDirectory);
  opened.defer(() => directory.close());
  const state = await directory.readState();

  // I-28: credentials that are missing or unreadable end the start here.
  const ca = await openCertificateAuthority(join(directory.path, 'pki'), { trustDomain, clock });
  // Beside the CA: who copies that to another replica copies this too.
  const secrets = await SecretBox.open(join(directory.path, 'pki', 'secrets.key'));
  const names = certificateNames(options);
  const identity = await ca.issueControlPlane(names);

  const store = await openStore(options.store ?? join(directory.path, 'drover.db'), { logger, clock });
  opened.defer(async () => await store.close());
  checkSameStore(state.store, store.kind, directory.path);
  const adminToken = await openAdminToken(directory.path, store.tokens);

  const feed = await EventFeed.open(store.events, clock, logger);
  opened.defer(async () => await feed.close());
  const worldview = new StoredWorldview({ store, clock, logger });
  opened.defer(async () => await worldview.close());
  const registry = new SqlRegistry({ store, journal: worldview, feed, replica: state.replica, clock, logger });
  // I-12: before anybody can ask.
  await registry.reap();
  const sandboxListener = new SandboxListener({ store, registry, worldview, ca, identity, clock, logger });
  opened.defer(async () => await sandboxListener.close());

  const life = new AbortController();
  const hub = new LinkServer({
    store,
    ca,
    registry,
    onInbound: sandboxListener.accept,
    replica: state.replica,
    clock,
    logger,
    ...names,
    ticketKeys: await directory.ticketKeys(),
    ...(options.hostTtlMs !== undefined && { ttlMs: options.hostTtlMs, heartbeatMs: Math.floor(options.hostTtlMs / 3) }),
  });
  let credentials = credentialsOf(identity, ca);
  const breaker = await CrashBreaker.open(join(directory.path, 'crashes.json'), options.lastEnd ?? '', clock, logger);
  opened.defer(async () => await breaker.close());
  const sessions = new SessionManager({
    store,
    hub,
    feed,
    tls: () => credentials,
    registry,
    ca,
    journal: worldview,
    worldview,
    plans: planSource(store, secrets),
    lastRefusal: (id, thumbprint) => sandboxListener.lastRefusal(id, thumbprint),
    breaker,
    initFailed: async (id, startCount, message) => await store.sandboxes.failInit(id, startCount, message),
    clock,
    logger,
  });
  const placement = new Placement({ store, clock, logger });
  const reconciler = new Reconciler({
    store,
    hub,
    feed,
    secrets,
    clock,
    logger,
    onAbsent: (id) => sessions.close(id),
  });

  // They listen to the hub before it takes the first host.
  const changed = (observations: readonly Observation[]): void => observations.forEach(({ sandboxId }) => feed.changed(sandboxId));
  opened.defer(
    hub.on({ hostConnected: (_host, _epoch, _signal, copies) => changed(copies), observed: (_host, copies) => changed(copies) }),
  );
  opened.defer(reconciler.attach());
  opened.defer(sessions.attach());
  opened.defer(async () => await reconciler.close());
  const { port: linkPort } = await atPort(options.linkListen, state.linkPort, 'the host link', (address) => hub.listen(address));
  opened.defer(async () => await hub.close());
  // Before the hosts go, so that no session counts as broken.
  opened.defer(async () => await sessions.closeAll());

  const volumes = new Volumes({ store, hub, logger });
  const upkeep = new Upkeep({
    store,
    clock,
    logger,
    compareSessions: async () => await sessions.compare(),
    settleVolumes: async () => await volumes.settleAll(),
    ...(options.lostGraceMs !== undefined && { lostGraceMs: options.lostGraceMs }),
    ...(options.hostTtlMs !== undefined && { orphanedHostMs: options.hostTtlMs * 3 }),
  });
  const background = Promise.all([placement.run(feed, life.signal), upkeep.run(life.signal), registry.run(life.signal)]);
  opened.defer(async () => {
    life.abort();
    await background;
  });

  const publicHost = bracketed(options.publicHost ?? reachableHost(options.listen.host));
  let address = '';
  const system: SystemFacts = {
    trustDomain: ca.names.trustDomain,
    startedAt,
    // An empty host: a host that joined under one name of this server stays with that name.
    linkAddress: `${bracketed(options.publicHost ?? '')}:${linkPort}`,
    get apiAddress() {
      return address;
    },
  };
  const context = { store, hub, secrets, sessions, registry, worldview, placement, volumes, ca, clock, logger, feed, system };
  const api = await atPort(options.listen, state.apiPort, 'the API', (listen) => startApi(context, { ...listen, identity }));
  address = `https://${publicHost}:${api.port}`;
  opened.defer(async () => await api.close());
  const use = (renewed: ServerIdentity): void => {
    credentials = credentialsOf(renewed, ca);
    sandboxListener.rotate(renewed);
    api.rotate(renewed);
  };
  const renewal = keepCertificate({ ca, names, use, clock, logger, certificatePem: identity.certificatePem }, life.signal);
  opened.defer(async () => {
    life.abort();
    await renewal;
  });

  await directory.writeState({ replica: state.replica, apiPort: api.port, linkPort, store: store.kind });
  const linkAddress = `${publicHost}:${linkPort}`;
  logger.info({ address, linkAddress, store: store.kind, ms: clock.now() - startedAt }, 'control plane is ready');
  return { address, linkAddress, caPem: ca.caPem, caFingerprint: ca.fingerprint, adminToken };
}

/**
 * A server without its own state looks like an empty fleet, and refuses every host that it should know.
 * @throws {DroverError} failed-precondition
 */
function checkSameStore(before: Store['kind'] | undefined, now: Store['kind'], path: string): void {
  if (before === undefined || before === now) return;
  const [then, today] = [before, now].map((kind) => (kind === 'sqlite' ? 'SQLite' : 'PostgreSQL'));
  throw new DroverError('failed-precondition', `the server of ${path} has its state in ${then}, not in ${today}`, {
    hint: before === 'postgres' ? 'give the same --store as before' : 'start it without --store, or give another server another --data',
  });
}

/** Listens on the port that is asked for; for port 0 on the one of the last start, so that hosts and clients find it again. */
async function atPort<T>(asked: ListenAddress, last: number, what: string, listen: (address: ListenAddress) => Promise<T>): Promise<T> {
  const port = asked.port === 0 ? last : asked.port;
  try {
    return await listen({ host: asked.host, port });
  } catch (error) {
    if (!hasCode(error, 'port-in-use')) throw error;
    throw new DroverError('port-in-use', `port ${port} of ${asked.host}, for ${what}, is in use by another program`, {
      hint: 'stop that program, or choose another port with --listen or --link-listen',
      cause: error,
    });
  }
}

interface CertificateNames {
  readonly dnsNames: readonly string[];
  readonly ipAddresses: readonly string[];
}

/** Everything that this server may be called by. */
function certificateNames(options: ControlPlaneOptions): CertificateNames {
  const all = [
    'localhost',
    '127.0.0.1',
    '::1',
    hostname(),
    ...(options.publicHost === undefined ? [] : [options.publicHost]),
    options.listen.host,
    options.linkListen.host,
    ...(options.dnsNames ?? []),
    ...(options.ipAddresses ?? []),
  ];
  const isAddress = (name: string): boolean => isIP(name) !== 0;
  const unspecified = new Set(['0.0.0.0', '::', '']);
  const names = [...new Set(all)].filter((name) => !unspecified.has(name));
  return { dnsNames: names.filter((name) => !isAddress(name)), ipAddresses: names.filter(isAddress) };
}

/** An address that others on the network can try, for a server that listens on every one of its own. */
function reachableHost(listenHost: string): string {
  if (listenHost !== '0.0.0.0' && listenHost !== '::' && listenHost !== '') return listenHost;
  const outward = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .find((address) => !address.internal && address.family === 'IPv4');
  return outward?.address ?? '127.0.0.1';
}

/** RFC 3986, section 3.2.2: an IPv6 address stands in brackets. */
function bracketed(host: string): string {
  return isIP(host) === 6 ? `[${host}]` : host;
}

function credentialsOf({ certificatePem, keyPem }: ServerIdentity, { caPem }: CertificateAuthority): SessionCredentials {
  return { certPem: certificatePem, keyPem, caPem };
}

interface Renewal {
  readonly ca: CertificateAuthority;
  readonly names: CertificateNames;
  /** Puts a new one in place. */
  readonly use: (identity: ServerIdentity) => void;
  readonly clock: Clock;
  readonly logger: Logger;
  /** The certificate that is in use, PEM. */
  readonly certificatePem: string;
}

/** Renews the server's certificate well before it expires, without a connection noticing. The link renews its own. */
async function keepCertificate({ ca, names, use, clock, logger, certificatePem }: Renewal, signal: AbortSignal): Promise<void> {
  let due = renewAt(certificatePem);
  while (!signal.aborted) {
    if (clock.now() >= due) {
      try {
        const identity = await ca.issueControlPlane(names);
        use(identity);
        due = renewAt(identity.certificatePem);
        logger.info({ notAfter: identity.notAfter }, 'the certificate of the server was renewed');
      } catch (error) {
        logger.error({ err: error }, 'the certificate of the server could not be renewed; it is tried again');
      }
    }
    // Only the signal rejects it, and the loop looks at that.
    await clock.sleep(certificateCheckMs, signal).catch(() => undefined);
  }
}
