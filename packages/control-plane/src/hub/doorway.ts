import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import type { Clock } from '@drover/foundation';
import { handshakeMs, handshakesAtOnce, handshakeTurnMs, waitingConnections } from '../limits.ts';

interface Visitor {
  readonly socket: Socket;
  /** When it came, or was let in to its handshake. */
  since: number;
  /** It said something and waits for its turn. */
  waiting: boolean;
  /** It counts among the handshakes under way. */
  shaking: boolean;
  /** It made a call: its handshake went well. */
  known: boolean;
  /** When to cut it; 0 never. */
  cutAt: number;
}

/**
 * Takes connections and lets only so many into their TLS handshake at once (L-12): when thousands come back together, the
 * first ones get through at once instead of all of them slowly. The others wait unread, in order. A connection stands in the
 * row from its first bytes on, so that one which says nothing keeps nobody from a turn.
 *
 * Its first bytes, the ClientHello, are read here and not by TLS: Node then sizes the connection's inbound buffer by them
 * (16 KiB once they are used) instead of the 64 KiB that it sets aside for a read of unknown length, for the connection's life.
 */
export class Doorway {
  readonly #server: Server;
  readonly #enter: (socket: Socket) => void;
  readonly #clock: Clock;
  readonly #visitors = new Map<string, Visitor>();
  /** Connections that have not said anything yet. */
  #silent = 0;
  #waiting: Visitor[] = [];
  #shaking = 0;

  constructor(enter: (socket: Socket) => void, clock: Clock) {
    this.#enter = enter;
    this.#clock = clock;
    this.#server = createServer({ noDelay: true, pauseOnConnect: true }, (socket) => this.#arrive(socket));
  }

  /** @throws the system's error: EADDRINUSE, EACCES, … */
  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      // The backlog is what the kernel may complete while this process is busy with handshakes.
      this.#server.listen({ host, port, backlog: 4_096 }, () => {
        this.#server.removeListener('error', reject);
        resolve();
      });
    });
    return (this.#server.address() as AddressInfo).port;
  }

  get connections(): number {
    return this.#visitors.size;
  }

  #arrive(socket: Socket): void {
    if (this.#silent + this.#waiting.length >= waitingConnections) {
      socket.destroy();
      return;
    }
    const visitor: Visitor = { socket, since: this.#clock.now(), waiting: false, shaking: false, known: false, cutAt: 0 };
    const key = `${socket.remoteAddress}:${socket.remotePort}`;
    this.#visitors.set(key, visitor);
    // A connection that breaks is seen by its streams; here it only must not end the process.
    socket.on('error', ignore);
    this.#silent++;
    let silent = true;
    const spoke = (): void => {
      if (silent) this.#silent--;
      silent = false;
    };
    socket.once('close', () => {
      spoke();
      this.#visitors.delete(key);
      this.#leave(visitor);
    });
    socket.once('readable', () => {
      spoke();
      if (socket.readableLength === 0) {
        socket.destroy(); // it ended
        return;
      }
      visitor.waiting = true;
      this.#waiting.push(visitor);
      this.#admit();
    });
  }

  #admit(): void {
    while (this.#shaking < handshakesAtOnce) {
      const visitor = this.#waiting.shift();
      if (visitor === undefined) return;
      visitor.waiting = false;
      if (visitor.socket.destroyed) continue;
      visitor.since = this.#clock.now();
      visitor.shaking = true;
      this.#shaking++;
      this.#enter(visitor.socket);
    }
  }

  #leave(visitor: Visitor): void {
    if (!visitor.shaking) return;
    visitor.shaking = false;
    this.#shaking--;
    this.#admit();
  }

  /** The connection of `peer` (address:port) made a call. */
  called(peer: string): void {
    const visitor = this.#visitors.get(peer);
    if (visitor === undefined) return;
    visitor.known = true;
    this.#leave(visitor);
  }

  /** Cuts the connection of `peer` after `graceMs`, if the other side has not by then. */
  cut(peer: string, graceMs: number): void {
    const visitor = this.#visitors.get(peer);
    if (visitor !== undefined) visitor.cutAt = this.#clock.now() + graceMs;
  }

  /** Called from the hub's one loop. */
  sweep(now: number): void {
    for (const visitor of this.#visitors.values()) {
      if (visitor.shaking && now - visitor.since > handshakeTurnMs) this.#leave(visitor);
      const stuck = !visitor.waiting && !visitor.known && now - visitor.since > handshakeMs;
      if (stuck || (visitor.cutAt > 0 && now >= visitor.cutAt)) visitor.socket.destroy();
    }
  }

  /** Takes no more connections; those that are open stay until `destroy`. */
  stop(): void {
    this.#server.close();
    for (const visitor of this.#waiting) visitor.socket.destroy();
    this.#waiting = [];
  }

  destroy(): void {
    for (const visitor of this.#visitors.values()) visitor.socket.destroy();
  }
}

function ignore(): void {}
