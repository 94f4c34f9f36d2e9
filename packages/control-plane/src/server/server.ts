import { join } from 'node:path';
import { DroverError, systemClock, type Clock, type Logger } from '@drover/foundation';
import { startApi, type ApiServer, type SystemFacts } from '../api/index.ts';
import { EventFeed } from '../feed/index.ts';
import { LinkServer, type Observation } from '../hub/index.ts';
import { Registry } from '../identity/index.ts';
import { StoredWorldview } from '../journal/index.ts';
import { Placement } from '../placement/index.ts';
import { Reconciler, Upkeep } from '../reconcile/index.ts';
import { SandboxListener } from '../sandbox-facing/index.ts';
import { CrashBreaker, planSource, SessionManager } from '../sessions/index.ts';
import { Volumes } from '../volumes/index.ts';
import { atPort, bracketed, reachableHost } from './addresses.ts';
import type { ControlPlane, ControlPlaneOptions } from './options.ts';
import { openState, type PersistentState } from './state.ts';

/**
 * Starts a control plane. If a part cannot be opened, the others are closed again.
 * @throws {DroverError} invalid-config for credentials or state that cannot be read (I-28); failed-precondition when another server
 *   holds the directory; port-in-use; missing-privilege; unavailable when the store cannot be opened
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

interface Assembly extends PersistentState {
  readonly options: ControlPlaneOptions;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly startedAt: number;
  /** Ends the background loops. */
  readonly life: AbortController;
  /** Closes the parts in the reverse order of their opening. */
  readonly opened: AsyncDisposableStack;
}

async function start(options: ControlPlaneOptions, opened: AsyncDisposableStack): Promise<Omit<ControlPlane, 'close'>> {
  const { logger, clock = systemClock } = options;
  const startedAt = clock.now();
  const state = await openState(options, clock, logger, opened);
  const { directory, last, ca, certificate, store, adminToken } = state;
  const assembly: Assembly = { ...state, options, clock, logger, startedAt, life: new AbortController(), opened };

  const parts = await openParts(assembly);
  const { hub, sandboxListener } = parts;
  const { port: linkPort } = await atPort(options.linkListen, last.linkPort, 'the host link', (address) => hub.listen(address));
  opened.defer(async () => await hub.close());
  // End the sessions before the hosts disconnect, so that none counts as broken.
  opened.defer(async () => await parts.sessions.closeAll());
  runInBackground(assembly, parts);

  const publicHost = bracketed(options.publicHost ?? reachableHost(options.listen.host));
  const { api, address } = await serveApi(assembly, parts, publicHost, linkPort);
  keepRunning(
    assembly,
    certificate.renewUntilAborted(
      (identity) => [sandboxListener, hub, api].forEach((server) => server.rotate(identity)),
      clock,
      logger,
      assembly.life.signal,
    ),
  );

  await directory.writeState({ replica: last.replica, apiPort: api.port, linkPort, store: store.kind });
  const linkAddress = `${publicHost}:${linkPort}`;
  logger.info({ address, linkAddress, store: store.kind, ms: clock.now() - startedAt }, 'control plane is ready');
  return { address, linkAddress, caPem: ca.caPem, caFingerprint: ca.fingerprint, adminToken };
}

type Parts = Awaited<ReturnType<typeof openParts>>;

/** Connects the parts with each other. None of them listens on a port yet. */
async function openParts({ directory, last, ca, secrets, certificate, store, options, clock, logger, opened }: Assembly) {
  const { replica } = last;
  const feed = await EventFeed.open(store.events, clock, logger);
  opened.defer(async () => await feed.close());
  const worldview = new StoredWorldview({ store, clock, logger });
  opened.defer(async () => await worldview.close());
  const registry = new Registry({ store, journal: worldview, feed, replica, clock, logger });
  // I-12: reap before the first lookup.
  await registry.reap();
  const sandboxListener = new SandboxListener({ store, registry, worldview, ca, identity: certificate.identity, clock, logger });
  opened.defer(async () => await sandboxListener.close());
  const hub = new LinkServer({
    store,
    ca,
    registry,
    onInbound: sandboxListener.accept,
    replica,
    clock,
    logger,
    identity: certificate.identity,
    ticketKeys: await directory.ticketKeys(),
    ...(options.hostTtlMs !== undefined && { ttlMs: options.hostTtlMs, heartbeatMs: Math.floor(options.hostTtlMs / 3) }),
  });
  const breaker = await CrashBreaker.open(join(directory.path, 'crashes.json'), options.lastEnd ?? '', clock, logger);
  opened.defer(async () => await breaker.close());
  const sessions = new SessionManager({
    store,
    hub,
    feed,
    tls: () => certificate.credentials,
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
  const reconciler = new Reconciler({ store, hub, feed, secrets, clock, logger, onAbsent: (id) => sessions.close(id) });

  // Every listener is attached before the hub accepts the first host.
  const changed = (copies: readonly Observation[]): void => copies.forEach(({ sandboxId }) => feed.changed(sandboxId));
  opened.defer(hub.on({ hostConnected: (...[, , , copies]) => changed(copies), observed: (_host, copies) => changed(copies) }));
  opened.defer(reconciler.attach());
  opened.defer(sessions.attach());
  opened.defer(async () => await reconciler.close());
  const placement = new Placement({ store, clock, logger });
  return { feed, worldview, registry, sandboxListener, hub, sessions, placement, volumes: new Volumes({ store, hub, logger }) };
}

function runInBackground(assembly: Assembly, { placement, feed, registry, sessions, volumes }: Parts): void {
  const { store, options, clock, logger, life } = assembly;
  const upkeep = new Upkeep({
    store,
    clock,
    logger,
    compareSessions: async () => await sessions.compare(),
    settleVolumes: async () => await volumes.settleAll(),
    ...(options.lostGraceMs !== undefined && { lostGraceMs: options.lostGraceMs }),
    ...(options.hostTtlMs !== undefined && { orphanedHostMs: options.hostTtlMs * 3 }),
  });
  keepRunning(assembly, placement.run(feed, life.signal), upkeep.run(life.signal), registry.run(life.signal));
}

/** Loops that end with `life`; closing waits for them. */
function keepRunning({ life, opened }: Assembly, ...loops: readonly Promise<void>[]): void {
  const ended = Promise.all(loops);
  opened.defer(async () => {
    life.abort();
    await ended;
  });
}

async function serveApi(
  { options, last, ca, secrets, certificate, store, clock, logger, startedAt, opened }: Assembly,
  parts: Parts,
  publicHost: string,
  linkPort: number,
): Promise<{ readonly api: ApiServer; readonly address: string }> {
  let address = '';
  const system: SystemFacts = {
    trustDomain: ca.names.trustDomain,
    startedAt,
    // With an empty name, a host keeps the name of this server under which it joined.
    linkAddress: `${bracketed(options.publicHost ?? '')}:${linkPort}`,
    get apiAddress() {
      return address;
    },
  };
  const context = { ...parts, store, secrets, ca, clock, logger, system };
  const { identity } = certificate;
  const api = await atPort(options.listen, last.apiPort, 'the API', (listen) => startApi(context, { ...listen, identity }));
  address = `https://${publicHost}:${api.port}`;
  opened.defer(async () => await api.close());
  return { api, address };
}
