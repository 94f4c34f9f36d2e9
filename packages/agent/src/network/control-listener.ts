import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import { DroverError, errnoOf, systemClock, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { sandboxConnectionsPerHost } from '@drover/spec';
import { controlConnectionRestMs, controlConnectionsPerSandbox, controlKeepaliveMs } from '../limits.ts';
import type { AddressHolder } from './network.ts';

export interface ControlListenerOptions {
  /** The gateway's address, and the control port on it. */
  readonly host: string;
  readonly port: number;
  /** The sandbox of a connection's address. Undefined: none. */
  readonly holderOf: (address: string) => AddressHolder | undefined;
  /** Takes a connection over to the control plane. Throws when there is no way now. */
  readonly carry: (from: AddressHolder, peerAddress: string, connection: Socket) => void;
  readonly clock?: Clock;
  readonly logger: Logger;
}

/**
 * The registration port (I-13). The peer's address identifies the sandbox, since no other can have it; the bytes are between sandbox and
 * control plane. A connection that cannot be carried is closed immediately: nothing waits here.
 */
export class ControlListener {
  readonly #options: ControlListenerOptions;
  readonly #clock: Clock;
  readonly #server: Server;
  /** Connections that count: open ones, and those that ended less than `controlConnectionRestMs` ago. */
  readonly #counted = new Map<SandboxId, number>();
  readonly #open = new Map<Socket, SandboxId>();
  readonly #life = new AbortController();
  #total = 0;

  constructor(options: ControlListenerOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#server = createServer(
      { allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: controlKeepaliveMs },
      (socket) => this.#accept(socket),
    );
  }

  /**
   * Listens. The network must have started: it makes the address.
   * @throws {DroverError} port-in-use, unavailable
   */
  async listen(): Promise<void> {
    const { host, port, logger } = this.#options;
    try {
      this.#server.listen({ host, port });
      await once(this.#server, 'listening');
    } catch (error) {
      throw cannotListen(host, port, error);
    }
    this.#server.on('error', (error) =>
      logger.error({ err: error }, 'a connection of a sandbox to the control plane could not be accepted'),
    );
  }

  /** Ends the connections of a sandbox that has lost its address: no peer remains that would end them. */
  released(id: SandboxId): void {
    for (const [socket, of] of this.#open) if (of === id) socket.resetAndDestroy();
  }

  /** Ends the listening and every connection. */
  async close(): Promise<void> {
    if (this.#life.signal.aborted) return;
    this.#life.abort();
    for (const socket of this.#open.keys()) socket.resetAndDestroy();
    if (!this.#server.listening) return;
    this.#server.close();
    await once(this.#server, 'close');
  }

  #accept(socket: Socket): void {
    // The carrier handles its errors; an error before that must not end the process.
    socket.on('error', () => undefined);
    const address = socket.remoteAddress;
    const from = address === undefined ? undefined : this.#options.holderOf(address);
    if (address === undefined || from === undefined) return void socket.resetAndDestroy();
    const { logger } = this.#options;
    const taken = this.#counted.get(from.id) ?? 0;
    if (taken >= controlConnectionsPerSandbox || this.#total >= sandboxConnectionsPerHost) {
      logger.debug({ sandbox: from.id, ofSandbox: taken, ofAll: this.#total }, 'a sandbox has too many connections to the control plane');
      return void socket.resetAndDestroy();
    }
    this.#counted.set(from.id, taken + 1);
    this.#total++;
    this.#open.set(socket, from.id);
    socket.once('close', () => void this.#ended(from.id, socket));
    try {
      this.#options.carry(from, address, socket);
    } catch (error) {
      logger.debug({ sandbox: from.id, err: error }, 'a connection of a sandbox to the control plane cannot be carried');
      socket.resetAndDestroy();
    }
  }

  async #ended(id: SandboxId, socket: Socket): Promise<void> {
    this.#open.delete(socket);
    this.#total--;
    // Closed meanwhile: nothing is counted any more.
    await this.#clock.sleep(controlConnectionRestMs, this.#life.signal).catch(() => undefined);
    const taken = (this.#counted.get(id) ?? 0) - 1;
    if (taken > 0) this.#counted.set(id, taken);
    else this.#counted.delete(id);
  }
}

function cannotListen(host: string, port: number, thrown: unknown): DroverError {
  if (errnoOf(thrown) === 'EADDRINUSE') {
    return new DroverError('port-in-use', `${host}:${port}, where sandboxes are to reach the control plane, is held by another process`, {
      hint: `see which with \`ss -Hltnp sport = :${port}\` and end it`,
      cause: thrown,
    });
  }
  return new DroverError('unavailable', `the agent cannot listen on ${host}:${port}: ${String(thrown)}`, {
    hint: 'see `drover doctor`; sandboxes register with the control plane through this port',
    cause: thrown,
  });
}
