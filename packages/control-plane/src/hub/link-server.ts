import { type MessageInitShape } from '@bufbuild/protobuf';
import { DroverError, systemClock, version, type Clock, type HostId, type Logger, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import type { CertificateAuthority } from '@drover/pki';
import { link, methodDefinition } from '@drover/protocol';
import { Server, status, type ConnectionInjector } from '@grpc/grpc-js';
import type { Duplex } from 'node:stream';
import { maxLinkFrameBytes } from '@drover/spec';
import type { Registry } from '../identity/index.ts';
import {
  goAwayGraceMs,
  heartbeatIntervalMs,
  hostTtlMs,
  hubTickMs,
  linkAuditMs,
  rampMaxDelayMs,
  registrationBurst,
  registrationsPerSecond,
  streamsPerConnection,
} from '../limits.ts';
import type { Store } from '../store/index.ts';
import { audit } from './audit.ts';
import { LinkServerCredentials, type ServerIdentity } from './credentials.ts';
import { HandshakeLimiter } from './handshake-limiter.ts';
import { storeHostEvents } from './host-events.ts';
import { endWith, HostLink, writeGoAway, type ConnectCall } from './host-link.ts';
import {
  isObservation,
  type CallOptions,
  type HostStreamSource,
  type Hub,
  type HubListener,
  type Operation,
  type ResultValue,
  type TunnelTarget,
} from './hub.ts';
import { Liveness } from './liveness.ts';
import { storeObservations, type ObservationSink } from './observations.ts';
import { hostOf } from './peer.ts';
import { AcceptRamp, type RampOptions } from './ramp.ts';
import { Registrations } from './registrations.ts';
import { sign } from './signing.ts';
import { StreamAcceptor, type Registered } from './stream-acceptor.ts';
import { Tunnels, type InboundHandler, type TunnelServerCall } from './tunnels.ts';

export interface LinkServerOptions {
  readonly store: Store;
  readonly ca: CertificateAuthority;
  /** Receives the certificates that are signed for sandboxes (I-13). Absent: no sandbox can register. */
  readonly registry?: Pick<Registry, 'issued'>;
  /** This replica's name: the owner of the streams that it holds (L-28). */
  readonly replica: string;
  readonly clock?: Clock;
  readonly logger?: Logger;
  readonly heartbeatMs?: number;
  readonly ttlMs?: number;
  readonly ramp?: RampOptions;
  /**
   * 48 random bytes, kept in the data directory: with them hosts resume their TLS sessions after a restart (L-12).
   * Without them hosts resume only until this process ends.
   */
  readonly ticketKeys?: Buffer;
  /** The control plane's certificate. Hosts check its URI, not its names. */
  readonly identity: ServerIdentity;
  readonly onInbound?: InboundHandler;
}

export interface LinkServerStats {
  readonly hosts: number;
  readonly pendingCommands: number;
  readonly connections: number;
  /** Results without a caller: duplicate, late or unknown (L-14). */
  readonly droppedResults: number;
  /** Registrations that the ramp refused (L-12). */
  readonly refusedByRamp: number;
}

const superseded = { reason: link.GoAway_Reason.SUPERSEDED, message: 'a newer stream of this host took over' };

/**
 * The control plane's end of the link (spec 1): one gRPC server, one stream per host. A HostLink holds the state of a stream; this class
 * decides which stream is a host's current one. One loop for all hosts does everything that depends on time.
 */
export class LinkServer implements Hub {
  readonly #options: LinkServerOptions;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #heartbeatMs: number;
  readonly #ttlMs: number;
  readonly #links = new Map<HostId, HostLink>();
  readonly #listeners = new Set<HubListener>();
  readonly #observationSink: ObservationSink;
  readonly #liveness: Liveness;
  readonly #tunnels: Tunnels;
  readonly #handshakes: HandshakeLimiter;
  readonly #acceptor: StreamAcceptor;
  readonly #server: Server;
  readonly #life = new AbortController();
  #injector: ConnectionInjector | undefined;
  readonly #credentials: LinkServerCredentials;
  #loop: Promise<void> | undefined;
  #lastAudit = 0;
  #droppedResults = 0;

  constructor(options: LinkServerOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#logger = options.logger ?? silentLogger;
    this.#heartbeatMs = options.heartbeatMs ?? heartbeatIntervalMs;
    this.#ttlMs = options.ttlMs ?? hostTtlMs;
    this.#observationSink = {
      store: options.store,
      logger: this.#logger,
      stored: (hostId, observations) => this.#notify('observed', hostId, observations),
    };
    this.#liveness = new Liveness(options.store, this.#logger);
    this.#tunnels = new Tunnels(this.#clock, options.onInbound);
    this.#handshakes = new HandshakeLimiter((socket) => this.#injector?.injectConnection(socket), this.#clock);
    this.#acceptor = new StreamAcceptor({
      names: options.ca.names,
      ramp: new AcceptRamp(
        options.ramp ?? { perSecond: registrationsPerSecond, burst: registrationBurst, maxDelayMs: rampMaxDelayMs },
        this.#clock.now(),
      ),
      registrations: new Registrations(options.store, options.replica, this.#logger),
      handshakes: this.#handshakes,
      clock: this.#clock,
      logger: this.#logger,
      signal: this.#life.signal,
      registered: (call, registered) => this.#registered(call, registered),
      receive: (held, frame) => this.#receive(held, frame),
      ended: (held) => this.#drop(held, 'its stream ended'),
    });
    this.#credentials = new LinkServerCredentials(this.#identity(options.identity));
    this.#server = new Server({
      // Agents send keepalive pings; a silent host is detected by its missing heartbeats, without a timer for each host.
      'grpc.enable_channelz': 0,
      'grpc.max_concurrent_streams': streamsPerConnection,
      'grpc.max_receive_message_length': maxLinkFrameBytes,
      'grpc.max_send_message_length': maxLinkFrameBytes,
    });
    const connect = methodDefinition(link.HostLinkService.method.connect);
    const tunnel = methodDefinition(link.HostLinkService.method.tunnel);
    this.#server.register<link.HostFrame, Buffer>(
      connect.path,
      (call: ConnectCall) => this.#acceptor.accept(call),
      asIs,
      connect.requestDeserialize,
      'bidi',
    );
    this.#server.register<link.TunnelFrame, link.TunnelFrame>(
      tunnel.path,
      (call: TunnelServerCall) => this.#tunnel(call),
      tunnel.responseSerialize,
      tunnel.requestDeserialize,
      'bidi',
    );
  }

  /**
   * Starts to accept hosts. First it marks the hosts down that this replica held before its restart.
   * @throws {DroverError} port-in-use, missing-privilege
   */
  async listen(address: { readonly host: string; readonly port: number }): Promise<{ readonly port: number }> {
    await this.#options.store.hosts.markOwnedDown(this.#options.replica);
    this.#injector = this.#server.createConnectionInjector(this.#credentials);
    let port: number;
    try {
      port = await this.#handshakes.listen(address.host, address.port);
    } catch (error) {
      throw DroverError.from(error);
    }
    this.#loop = this.#run();
    return { port };
  }

  /** Asks every host to reconnect later, marks them down, fails the waiting calls, closes. */
  async close(): Promise<void> {
    if (this.#life.signal.aborted) return;
    this.#life.abort(new DroverError('unavailable', 'the control plane stops'));
    this.#handshakes.stop();
    // The hosts reconnect evenly over the time that the ramp needs for them.
    const spreadMs = Math.min(rampMaxDelayMs, 1_000 + (this.#links.size * 1_000) / registrationsPerSecond);
    this.#acceptor.close();
    for (const held of this.#links.values()) {
      const reconnectAfterMs = Math.max(1, Math.round(Math.random() * spreadMs));
      this.#drop(held, 'the control plane stops', { reason: link.GoAway_Reason.SHUTDOWN, reconnectAfterMs });
    }
    await this.#loop;
    await this.#liveness.flush();
    const closed = new Promise<void>((resolve) => {
      this.#server.tryShutdown(() => resolve());
    });
    const timeout = setTimeout(() => this.#handshakes.destroy(), goAwayGraceMs);
    await closed;
    clearTimeout(timeout);
    this.#handshakes.destroy();
    this.#server.forceShutdown();
  }

  /** Takes effect for new connections; open ones keep their certificate. */
  rotate(identity: ServerIdentity): void {
    this.#credentials.rotate(this.#identity(identity));
  }

  isConnected(hostId: HostId): boolean {
    return this.#links.has(hostId);
  }

  async call(hostId: HostId, operation: Operation, options: CallOptions = {}): Promise<ResultValue> {
    return await this.#linkOf(hostId).command(operation, options, this.#clock);
  }

  async openTunnel(hostId: HostId, target: TunnelTarget, signal?: AbortSignal): Promise<Duplex> {
    const { sandboxId, port } = target;
    return await this.#open(hostId, sandboxId, port === 'init' ? { case: 'init', value: true } : { case: 'port', value: port }, signal);
  }

  async openHostStream(hostId: HostId, sandboxId: SandboxId, source: HostStreamSource, signal?: AbortSignal): Promise<Duplex> {
    return await this.#open(hostId, sandboxId, source, signal);
  }

  async #open(hostId: HostId, sandboxId: SandboxId, target: link.OpenTunnel['target'], signal: AbortSignal | undefined): Promise<Duplex> {
    const held = this.#linkOf(hostId);
    return await this.#tunnels.open(
      hostId,
      async (tunnelId, given) => {
        const value: MessageInitShape<typeof link.OpenTunnelSchema> = { tunnelId, sandboxId, target };
        await held.command({ case: 'openTunnel', value } as Operation, { signal: given }, this.#clock);
      },
      signal,
    );
  }

  /** L-15: a call to a host that is not connected fails immediately. */
  #linkOf(hostId: HostId): HostLink {
    const held = this.#links.get(hostId);
    if (held !== undefined) return held;
    throw new DroverError('host-unavailable', `host ${hostId} is not connected`, {
      hint: 'it reconnects automatically; `drover host ls` shows its state',
    });
  }

  disconnect(hostId: HostId, reason: link.GoAway_Reason, message: string): void {
    const held = this.#links.get(hostId);
    if (held === undefined) return;
    const removed = reason === link.GoAway_Reason.REMOVED;
    this.#drop(
      held,
      message,
      { reason, message },
      removed ? { code: status.PERMISSION_DENIED, details: 'the host was removed' } : undefined,
    );
    // Its tunnels end with it (L-4).
    if (removed) this.#handshakes.close(held.peer, goAwayGraceMs);
  }

  on(listener: HubListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  stats(): LinkServerStats {
    let pendingCommands = 0;
    for (const held of this.#links.values()) pendingCommands += held.pendingCommands;
    return {
      hosts: this.#links.size,
      pendingCommands,
      connections: this.#handshakes.connections,
      droppedResults: this.#droppedResults,
      refusedByRamp: this.#acceptor.refusedByRamp,
    };
  }

  /** Makes a registered stream its host's current one (L-11). */
  #registered(call: ConnectCall, { hostId, epoch, peer, registration }: Registered): HostLink | undefined {
    const older = this.#links.get(hostId);
    if (older !== undefined && older.epoch > epoch) {
      // A newer stream has registered meanwhile.
      writeGoAway(call, superseded);
      endWith(call, status.ABORTED, superseded.message);
      return undefined;
    }
    if (older !== undefined) this.#drop(older, superseded.message, superseded);
    if (call.cancelled || this.#life.signal.aborted) {
      this.#liveness.down(hostId, epoch, 'its stream ended');
      if (!call.cancelled) endWith(call, status.UNAVAILABLE, 'the control plane stops');
      return undefined;
    }
    const held = new HostLink(call, hostId, epoch, peer, this.#clock.now());
    this.#links.set(hostId, held);
    held.send({
      case: 'welcome',
      value: {
        epoch: BigInt(epoch),
        heartbeatMs: this.#heartbeatMs,
        ttlMs: this.#ttlMs,
        controlPlaneVersion: version,
        caPem: this.#options.ca.caPem,
        trustDomain: this.#options.ca.names.trustDomain,
      },
    });
    this.#logger.info({ hostId, epoch, peer, sandboxes: registration.sandboxes.length }, 'host connected');
    this.#notify('hostConnected', hostId, epoch, held.signal, registration.sandboxes.filter(isObservation));
    return held;
  }

  #receive(held: HostLink, frame: link.HostFrame['frame']): void {
    // L-11: frames of a superseded or dropped stream are ignored.
    if (held.ended) return;
    held.lastSeen = this.#clock.now();
    switch (frame.case) {
      case 'heartbeat':
        return this.#liveness.beat(held, frame.value);
      case 'result':
        if (!held.settle(frame.value)) this.#droppedResults++;
        return;
      case 'progress':
        return held.progress(frame.value);
      case 'observations':
        return storeObservations(this.#observationSink, held, frame.value.sandboxes);
      case 'events':
        return storeHostEvents({ store: this.#options.store, logger: this.#logger, clock: this.#clock }, held, frame.value);
      case 'signingRequest':
        void sign(this.#options, this.#logger, held, frame.value);
        return;
      case 'register':
        return this.#drop(held, 'it registered twice', undefined, { code: status.INVALID_ARGUMENT, details: 'Register came twice' });
      case undefined:
        // A frame of a newer agent, which expects no response.
        return;
    }
  }

  #tunnel(call: TunnelServerCall): void {
    const certified = hostOf(call, this.#options.ca.names, this.#clock.now());
    // L-4: a removed host has no link.
    if (certified === undefined || !this.#links.has(certified)) {
      return endWith(call, status.PERMISSION_DENIED, 'the host has no link');
    }
    this.#tunnels.accept(certified, call);
  }

  /** Ends one stream. The host goes down only if the stream is its current one (L-11). */
  #drop(
    held: HostLink,
    reason: string,
    goAway?: MessageInitShape<typeof link.GoAwaySchema>,
    ending?: { readonly code: number; readonly details: string },
  ): void {
    if (held.ended) return;
    if (this.#links.get(held.hostId) === held) this.#links.delete(held.hostId);
    held.end(reason, goAway, ending);
    // L-10: the store marks the host down only while this epoch is the newest.
    this.#liveness.down(held.hostId, held.epoch, reason);
    this.#logger.info({ hostId: held.hostId, epoch: held.epoch, reason }, 'host disconnected');
    this.#notify('hostDisconnected', held.hostId, held.epoch, reason);
  }

  /** The loop of the hub. */
  async #run(): Promise<void> {
    const { signal } = this.#life;
    while (!signal.aborted) {
      try {
        await this.#clock.sleep(hubTickMs, signal);
      } catch {
        return; // closed
      }
      const now = this.#clock.now();
      this.#acceptor.sweep(now);
      this.#sweep(now);
      this.#handshakes.sweep(now);
      try {
        await this.#liveness.flush();
        if (now - this.#lastAudit >= linkAuditMs) await this.#audit(now);
      } catch (error) {
        this.#logger.error({ err: error }, 'a round of the hub failed; retrying');
      }
    }
  }

  #sweep(now: number): void {
    for (const held of this.#links.values()) {
      if (now - held.lastSeen <= this.#ttlMs) continue;
      const message = `nothing was heard of it for ${Math.round((now - held.lastSeen) / 1000)} s`;
      this.#drop(held, message, { reason: link.GoAway_Reason.SILENT, message });
      // The host may not read GoAway.
      this.#handshakes.close(held.peer, goAwayGraceMs);
    }
  }

  async #audit(now: number): Promise<void> {
    this.#lastAudit = now;
    for (const [held, verdict] of await audit(this.#options.store, this.#links)) {
      // Another stream of the host may have replaced it meanwhile.
      if (held.ended) continue;
      if (verdict === 'removed') this.disconnect(held.hostId, link.GoAway_Reason.REMOVED, 'the host was removed');
      else this.#drop(held, superseded.message, superseded);
    }
  }

  #identity(identity: ServerIdentity): ConstructorParameters<typeof LinkServerCredentials>[0] {
    const { ca, ticketKeys } = this.#options;
    return { ...identity, caPem: ca.caPem, ...(ticketKeys === undefined ? {} : { ticketKeys }) };
  }

  #notify<K extends keyof HubListener>(event: K, ...rest: Parameters<NonNullable<HubListener[K]>>): void {
    for (const listener of this.#listeners) {
      try {
        (listener[event] as ((...values: typeof rest) => void) | undefined)?.(...rest);
      } catch (error) {
        this.#logger.error({ err: error, event }, 'a listener of the hub failed');
      }
    }
  }
}

function asIs(bytes: Buffer): Buffer {
  return bytes;
}
