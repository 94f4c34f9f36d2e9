import { X509Certificate } from 'node:crypto';
import type { Duplex } from 'node:stream';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { Backoff, DroverError, newId, systemClock, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { createKeyAndRequest, renewAt } from '@drover/pki';
import { link } from '@drover/protocol';
import { maxLinkFrameBytes } from '@drover/spec';
import { Client } from '@grpc/grpc-js';
import type { Images } from '../images/index.ts';
import {
  channelBackoffMs,
  healthyStreamMs,
  keepaliveMs,
  keepaliveTimeoutMs,
  linkWindowBytes,
  maxServerDelayMs,
  reconnectBaseMs,
  reconnectCapMs,
  renewalRetryMs,
} from '../limits.ts';
import type { SandboxEvent, Sandboxes } from '../sandboxes/index.ts';
import type { VolumeStore } from '../volumes/index.ts';
import { CommandRunner } from './commands.ts';
import { HostChannelCredentials, HostTls } from './credentials.ts';
import type { HostInfo } from './host-info.ts';
import type { CredentialsStore } from './identity.ts';
import { eventToWire } from './convert.ts';
import { UnsentEvents } from './host-events.ts';
import { UnsentObservations } from './observations.ts';
import { Signer, type Signed } from './signer.ts';
import { AgentStream, type Ending } from './stream.ts';
import { AgentTunnels } from './tunnels.ts';

export interface AgentLinkOptions {
  readonly credentials: CredentialsStore;
  /** host:port; default: from the join. */
  readonly address?: string;
  readonly sandboxes: Sandboxes;
  readonly images: Images;
  readonly volumes: Pick<VolumeStore, 'create' | 'remove' | 'list'>;
  readonly info: HostInfo;
  readonly clock?: Clock;
  readonly logger?: Logger;
  /** The longest wait between two tries (L-12). Milliseconds. */
  readonly reconnectMaxMs?: number;
  /** For the jitter of reconnects: [0, 1). */
  readonly random?: () => number;
}

/** The host's end of the link: one stream to the control plane, dialled again whenever it ends (L-12). */
export class AgentLink {
  readonly #options: AgentLinkOptions;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #signer: Signer;
  readonly #tls: HostTls;
  readonly #unsent = new UnsentObservations();
  readonly #events = new UnsentEvents();
  #tunnels: AgentTunnels | undefined;
  #client: Client | undefined;
  #channel: HostChannelCredentials | undefined;
  #stream: AgentStream | undefined;
  #connected = false;
  #reconnects = 0;
  #renewing = false;
  #renewNotBefore = 0;
  #due = { certificatePem: '', at: 0 };

  constructor(options: AgentLinkOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#logger = options.logger ?? silentLogger;
    this.#signer = new Signer(this.#clock);
    this.#tls = new HostTls(options.credentials);
  }

  /** The stream is open and welcomed. */
  get connected(): boolean {
    return this.#connected;
  }

  /** The last connection resumed an earlier TLS session (L-12). */
  get resumed(): boolean {
    return this.#tls.resumed;
  }

  /** Redials since `run`. */
  get reconnects(): number {
    return this.#reconnects;
  }

  /**
   * Holds the link until the signal aborts, or until the control plane reports that this host was removed (L-4).
   * Never rejects. Commands continue when the stream ends; the next stream reports them.
   */
  async run(signal: AbortSignal): Promise<'aborted' | 'removed'> {
    const { sandboxes, images, volumes, info, random, reconnectMaxMs = reconnectCapMs } = this.#options;
    const tunnels = new AgentTunnels(sandboxes, this.#clock, this.#logger, signal);
    this.#tunnels = tunnels;
    const commands = new CommandRunner({
      sandboxes,
      images,
      volumes,
      openTunnel: async (command) => {
        if (this.#client === undefined) throw new DroverError('unavailable', 'the link is down');
        await tunnels.open(this.#client, command);
      },
      diagnose: info.diagnose?.bind(info),
      clock: this.#clock,
      logger: this.#logger,
      signal,
    });
    const stopListening = sandboxes.onObserved((observation) => {
      this.#unsent.add(observation);
      this.#stream?.observed();
    });
    const backoff = new Backoff({ baseMs: reconnectBaseMs, capMs: reconnectMaxMs, ...(random === undefined ? {} : { random }) });
    try {
      while (!signal.aborted) {
        const ending = await this.#hold(commands, signal);
        if (signal.aborted) break;
        if (ending.goAway?.reason === link.GoAway_Reason.REMOVED) {
          this.#logger.error({ reason: ending.reason }, 'this host was removed from its control plane');
          return 'removed';
        }
        if (ending.since !== undefined && this.#clock.now() - ending.since >= healthyStreamMs) backoff.reset();
        // L-12: the server's delay overrides the backoff.
        const requestedMs = Math.min(ending.goAway?.reconnectAfterMs ?? 0, maxServerDelayMs);
        const delayMs = requestedMs > 0 ? requestedMs : backoff.nextMs();
        const failure = this.#tls.takeFailure();
        const reason = (ending.since === undefined ? this.#clockReason(failure) : undefined) ?? ending.reason;
        this.#logger.warn({ reason, delayMs }, 'the link is down; dialling again');
        try {
          await this.#clock.sleep(delayMs, signal);
        } catch {
          break; // aborted
        }
        this.#reconnects++;
      }
      return 'aborted';
    } finally {
      stopListening();
      this.#closeClient();
    }
  }

  /**
   * Which clocks to compare, when a connection broke because of the dates of the control plane's certificate, or while those of this host's
   * do not include the present time: then the control plane closes the connection.
   */
  #clockReason(failure: NodeJS.ErrnoException | undefined): string | undefined {
    const { validFrom, validTo, validFromDate, validToDate } = new X509Certificate(this.#options.credentials.current.certificatePem);
    const now = new Date(this.#clock.now());
    const isRefused = now < validFromDate || now > validToDate;
    if (!isRefused && !/EXPIRED|NOT_YET_VALID/.test(failure?.code ?? '')) return undefined;
    const why = isRefused ? "this host's certificate is not valid now" : `of the control plane: ${failure?.message}`;
    return `${why}: the clock of this machine says ${now.toISOString()}, and its certificate is valid from ${validFrom} to ${validTo}; compare this clock with the control plane's`;
  }

  /** One stream, from dialling to its end. */
  async #hold(commands: CommandRunner, signal: AbortSignal): Promise<Ending> {
    const { credentials, sandboxes, info } = this.#options;
    this.#client ??= this.#dial();
    this.#stream = new AgentStream(this.#client, {
      hostId: credentials.current.hostId,
      info,
      commands,
      signer: this.#signer,
      unsent: this.#unsent,
      events: this.#events,
      sandboxes: () => sandboxes.list(),
      agentInstance: this.#instance,
      clock: this.#clock,
      logger: this.#logger,
      onWelcome: ({ epoch, controlPlaneVersion }) => {
        this.#connected = true;
        this.#logger.info({ epoch: Number(epoch), controlPlaneVersion, resumed: this.resumed }, 'the link is up');
      },
      onBeat: () => this.#maybeRenew(signal),
    });
    try {
      const ending = await this.#stream.run(signal);
      // After a BUSY the connection is good and its handshake done; anything else starts with a new one.
      if (ending.goAway?.reason !== link.GoAway_Reason.BUSY) this.#closeClient();
      return ending;
    } finally {
      this.#connected = false;
      this.#stream = undefined;
    }
  }

  readonly #instance = newId('run');

  #dial(): Client {
    this.#channel = new HostChannelCredentials(this.#tls);
    return new Client(this.#options.address ?? this.#options.credentials.current.linkAddress, this.#channel, {
      'grpc.keepalive_time_ms': keepaliveMs,
      'grpc.keepalive_timeout_ms': keepaliveTimeoutMs,
      'grpc.max_receive_message_length': maxLinkFrameBytes,
      'grpc.max_send_message_length': maxLinkFrameBytes,
      'grpc-node.flow_control_window': linkWindowBytes,
      // One connection per link, even with many links in one process; retries and idleness are the link's own business.
      'grpc.use_local_subchannel_pool': 1,
      'grpc.enable_retries': 0,
      'grpc.enable_channelz': 0,
      'grpc.service_config_disable_resolution': 1,
      // `run` decides when to redial, with a new channel.
      'grpc.initial_reconnect_backoff_ms': channelBackoffMs,
      'grpc.max_reconnect_backoff_ms': channelBackoffMs,
    });
  }

  #closeClient(): void {
    this.#client?.close();
    this.#channel?.close();
    this.#client = undefined;
    this.#channel = undefined;
  }

  /** Reports an occurrence in a sandbox, which the control plane stores as an event. Waits for the link, bounded. */
  readonly report = (event: SandboxEvent): void => {
    this.#events.add(eventToWire(event));
    this.#stream?.observed();
  };

  /** Requests a sandbox's certificate from the control plane (I-6); waits over a reconnect, bounded. */
  readonly signSandboxCertificate = async (id: SandboxId, csrDer: Uint8Array, signal: AbortSignal): Promise<Signed> =>
    await this.#signer.sign({ case: 'sandboxId', value: id }, csrDer, signal);

  /**
   * Carries a connection from a sandbox to the control plane (I-13) on the current link: the end of one resets the other.
   * @throws {DroverError} unavailable while the link is down
   */
  readonly carryInbound = (inbound: MessageInitShape<typeof link.SandboxInboundSchema>, connection: Duplex): void => {
    if (this.#client === undefined || this.#tunnels === undefined || !this.#connected) {
      throw new DroverError('unavailable', 'the link is down');
    }
    this.#tunnels.carry(this.#client, inbound, connection);
  };

  /** L-2: renews the certificate at two thirds of its life, on the open stream; new connections use it. */
  #maybeRenew(signal: AbortSignal): void {
    const now = this.#clock.now();
    if (this.#renewing || now < this.#renewNotBefore || now < this.#renewalDue()) return;
    this.#renewing = true;
    void this.#renew(signal).finally(() => {
      this.#renewing = false;
    });
  }

  /** Parsed once per certificate, not at every heartbeat. */
  #renewalDue(): number {
    const { certificatePem } = this.#options.credentials.current;
    if (this.#due.certificatePem !== certificatePem) this.#due = { certificatePem, at: renewAt(certificatePem) };
    return this.#due.at;
  }

  async #renew(signal: AbortSignal): Promise<void> {
    try {
      const { keyPem, csrDer } = createKeyAndRequest();
      const { certificatePem, caPem } = await this.#signer.sign({ case: 'host', value: true }, csrDer, signal);
      await this.#options.credentials.replace({ keyPem, certificatePem, caPem });
      this.#logger.info({}, "the host's certificate was renewed");
    } catch (error) {
      this.#renewNotBefore = this.#clock.now() + renewalRetryMs;
      this.#logger.warn({ err: error }, "the host's certificate could not be renewed; it is tried again");
    }
  }
}
