import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import type { Clock } from '@drover/foundation';
import { concurrentHandshakes, handshakeMs, handshakeSlotMs, waitingConnections } from '../limits.ts';

interface Connection {
  readonly socket: Socket;
  /** The time of its accept, or of the start of its handshake. */
  since: number;
  /** It sent its first bytes and waits for a slot. */
  waiting: boolean;
  /** It holds a slot. */
  handshaking: boolean;
  /** It made a call, so its handshake has succeeded. */
  authenticated: boolean;
  /** When to destroy it; 0 never. */
  destroyAt: number;
}

/**
 * Accepts connections, and bounds how many are in their TLS handshake (L-12): when thousands reconnect, the first get through quickly
 * instead of all of them slowly. The other connections wait unread, in order. A connection enters the queue with its first bytes, so that a
 * silent connection delays no other.
 *
 * The first bytes, the ClientHello, are read here and not by TLS: Node then sizes the connection's inbound buffer by them (16 KiB)
 * instead of the 64 KiB that it reserves for a read of unknown length, for the life of the connection.
 */
export class HandshakeLimiter {
  readonly #server: Server;
  readonly #begin: (socket: Socket) => void;
  readonly #clock: Clock;
  readonly #connections = new Map<string, Connection>();
  /** Connections that have not sent anything yet. */
  #silent = 0;
  #waiting: Connection[] = [];
  #handshaking = 0;

  /** @param begin starts the handshake of a connection */
  constructor(begin: (socket: Socket) => void, clock: Clock) {
    this.#begin = begin;
    this.#clock = clock;
    this.#server = createServer({ noDelay: true, pauseOnConnect: true }, (socket) => this.#accept(socket));
  }

  /** @throws the system's error: EADDRINUSE, EACCES, … */
  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      // The kernel completes up to this many connections while this process is busy with handshakes.
      this.#server.listen({ host, port, backlog: 4_096 }, () => {
        this.#server.removeListener('error', reject);
        resolve();
      });
    });
    return (this.#server.address() as AddressInfo).port;
  }

  get connections(): number {
    return this.#connections.size;
  }

  #accept(socket: Socket): void {
    if (this.#silent + this.#waiting.length >= waitingConnections) {
      socket.destroy();
      return;
    }
    const connection: Connection = {
      socket,
      since: this.#clock.now(),
      waiting: false,
      handshaking: false,
      authenticated: false,
      destroyAt: 0,
    };
    const key = `${socket.remoteAddress}:${socket.remotePort}`;
    this.#connections.set(key, connection);
    // Its streams report the error; without this listener it would end the process.
    socket.on('error', ignore);
    this.#silent++;
    let silent = true;
    const endSilence = (): void => {
      if (silent) this.#silent--;
      silent = false;
    };
    socket.once('close', () => {
      endSilence();
      this.#connections.delete(key);
      this.#release(connection);
    });
    socket.once('readable', () => {
      endSilence();
      if (socket.readableLength === 0) {
        socket.destroy(); // the peer closed it without sending
        return;
      }
      connection.waiting = true;
      this.#waiting.push(connection);
      this.#admit();
    });
  }

  #admit(): void {
    while (this.#handshaking < concurrentHandshakes) {
      const connection = this.#waiting.shift();
      if (connection === undefined) return;
      connection.waiting = false;
      if (connection.socket.destroyed) continue;
      connection.since = this.#clock.now();
      connection.handshaking = true;
      this.#handshaking++;
      this.#begin(connection.socket);
    }
  }

  #release(connection: Connection): void {
    if (!connection.handshaking) return;
    connection.handshaking = false;
    this.#handshaking--;
    this.#admit();
  }

  /** The connection of `peer` (address:port) made a call. */
  called(peer: string): void {
    const connection = this.#connections.get(peer);
    if (connection === undefined) return;
    connection.authenticated = true;
    this.#release(connection);
  }

  /** Destroys the connection of `peer` after `graceMs`, unless the peer closes it before. */
  close(peer: string, graceMs: number): void {
    const connection = this.#connections.get(peer);
    if (connection !== undefined) connection.destroyAt = this.#clock.now() + graceMs;
  }

  /** Called by the loop of the hub. */
  sweep(now: number): void {
    for (const connection of this.#connections.values()) {
      const { handshaking, waiting, authenticated, since, destroyAt, socket } = connection;
      if (handshaking && now - since > handshakeSlotMs) this.#release(connection);
      const isStuck = !waiting && !authenticated && now - since > handshakeMs;
      if (isStuck || (destroyAt > 0 && now >= destroyAt)) socket.destroy();
    }
  }

  /** Accepts no more connections; open ones stay until `destroy`. */
  stop(): void {
    this.#server.close();
    for (const { socket } of this.#waiting) socket.destroy();
    this.#waiting = [];
  }

  destroy(): void {
    for (const { socket } of this.#connections.values()) socket.destroy();
  }
}

function ignore(): void {}
