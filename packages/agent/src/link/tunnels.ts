import { create, type MessageInitShape } from '@bufbuild/protobuf';
import type { Duplex } from 'node:stream';
import { after, DroverError, parseSandboxId, type Clock, type SandboxId, type Logger } from '@drover/foundation';
import { link, methodDefinition, TunnelStream, writeHostStream } from '@drover/protocol';
import { publicErrorToWire } from '@drover/protocol/rpc';
import type { Client } from '@grpc/grpc-js';
import { tunnelDialMs, tunnelsAtOnce } from '../limits.ts';
import type { CopyPart, Sandboxes } from '../sandboxes/index.ts';
import { logOptionsOf, logsToWire } from './convert.ts';
import { joinStreams } from './join-streams.ts';

const method = methodDefinition(link.HostLinkService.method.tunnel);

/** The host's ends of the tunnels (L-30). A tunnel lives on the connection that requested it, until either side ends it. */
export class AgentTunnels {
  readonly #sandboxes: Sandboxes;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #signal: AbortSignal;
  #open = 0;

  /** @param signal aborts when the agent stops */
  constructor(sandboxes: Sandboxes, clock: Clock, logger: Logger, signal: AbortSignal) {
    this.#sandboxes = sandboxes;
    this.#clock = clock;
    this.#logger = logger;
    this.#signal = signal;
  }

  /**
   * Dials the port, then opens the tunnel and joins the two. A port that cannot be reached is the command's error.
   * @throws {DroverError} the dial's errors; timed-out, queue-full, invalid-argument
   */
  async open(client: Client, command: link.OpenTunnel): Promise<void> {
    const id = parseSandboxId(command.sandboxId);
    const { target } = command;
    if (target.case === 'logs') {
      return this.#send(client, command.tunnelId, (signal) => logsToWire(this.#sandboxes.logs(id, logOptionsOf(target.value), signal)));
    }
    if (target.case === 'copyOut') {
      return this.#send(client, command.tunnelId, (signal) => this.#sandboxes.copyOut(id, target.value, signal));
    }
    const port = portOf(command);
    this.#mustHaveRoom();
    this.#open++;
    try {
      const inside = await this.#dial(id, port);
      let call: ReturnType<typeof callTunnel>;
      try {
        call = callTunnel(client, { case: 'tunnelId', value: command.tunnelId });
      } catch (error) {
        // The link that requested the tunnel ended during the dial.
        inside.destroy();
        throw new DroverError('unavailable', 'the link that requested the tunnel has ended', { cause: error });
      }
      if (!inside.closed) {
        this.#open++;
        inside.once('close', () => this.#open--);
      }
      this.#join(new TunnelStream(call, () => call.cancel()), inside, id);
    } finally {
      this.#open--;
    }
  }

  /**
   * Opens the tunnel of a connection from a sandbox (I-13) and joins the two; the acceptor bounds their number.
   * When the tunnel breaks, or the control plane refuses it, the connection is reset.
   */
  carry(client: Client, inbound: MessageInitShape<typeof link.SandboxInboundSchema>, connection: Duplex): void {
    const call = callTunnel(client, { case: 'inbound', value: inbound });
    this.#join(new TunnelStream(call, () => call.cancel()), connection, inbound.sandboxId);
  }

  #mustHaveRoom(): void {
    if (this.#open < tunnelsAtOnce) return;
    throw new DroverError('queue-full', `${this.#open} tunnels are open on this host`, { hint: 'close some and try again' });
  }

  /** Opens a tunnel for data of a sandbox that this host stores. */
  #send(client: Client, tunnelId: string, open: (signal: AbortSignal) => AsyncIterable<CopyPart>): void {
    this.#mustHaveRoom();
    const closed = new AbortController();
    const messages = open(AbortSignal.any([closed.signal, this.#signal]));
    const call = callTunnel(client, { case: 'tunnelId', value: tunnelId });
    const tunnel = new TunnelStream(call, () => call.cancel());
    // `close` follows.
    tunnel.on('error', () => undefined);
    const cut = (): void => void tunnel.destroy();
    this.#signal.addEventListener('abort', cut, { once: true });
    this.#open++;
    tunnel.once('close', () => {
      this.#open--;
      this.#signal.removeEventListener('abort', cut);
      closed.abort();
    });
    void writeHostStream(messages, tunnel, (error) => publicErrorToWire(error, this.#logger));
  }

  /** Joins the two until either side ends, or the agent stops. */
  #join(tunnel: TunnelStream, inside: Duplex, sandboxId: string | undefined): void {
    const cut = (): void => void tunnel.destroy();
    this.#signal.addEventListener('abort', cut, { once: true });
    inside.once('close', () => this.#signal.removeEventListener('abort', cut));
    joinStreams(tunnel, inside, this.#clock, (error) => this.#logger.debug({ err: error, sandboxId }, 'a tunnel was cut'));
  }

  async #dial(id: SandboxId, port: 'init' | number): ReturnType<Sandboxes['dial']> {
    const late = new AbortController();
    const stopTimer = after(tunnelDialMs, this.#clock, () =>
      late.abort(new DroverError('timed-out', `nothing in ${id} answered on port ${port} in time`)),
    );
    try {
      return await this.#sandboxes.dial(id, port, AbortSignal.any([late.signal, this.#signal]));
    } finally {
      stopTimer();
    }
  }
}

/** Throws when the client is closed. */
function callTunnel(client: Client, direction: NonNullable<MessageInitShape<typeof link.TunnelOpenSchema>['direction']>) {
  const call = client.makeBidiStreamRequest(method.path, method.requestSerialize, method.responseDeserialize);
  call.write(create(link.TunnelFrameSchema, { frame: { case: 'open', value: { direction } } }));
  return call;
}

function portOf({ target }: link.OpenTunnel): 'init' | number {
  if (target.case === 'init') return 'init';
  if (target.case === 'port' && target.value > 0 && target.value < 65_536) return target.value;
  throw new DroverError('invalid-argument', 'the tunnel names no port between 1 and 65535');
}
