import type { Duplex } from 'node:stream';
import { systemClock, type Clock } from './clock.ts';
import { after } from './waiting.ts';

/** The part of a TLS or HTTP/2 server that announces a connection, and later the same connection with its handshake done. */
interface SecureServer {
  prependListener(event: 'connection' | 'secureConnection', listener: (socket: Peer) => void): unknown;
}

type Peer = Duplex & { readonly remoteAddress?: string | undefined; readonly remotePort?: number | undefined };

/**
 * Destroys each connection of a TCP server with TLS whose handshake has not ended `ms` after the connection was accepted.
 * Node's own `handshakeTimeout` restarts with every byte and only reports the timeout: a peer that sends nothing, or one byte at a time,
 * keeps its connection.
 * @param cut called after a connection was destroyed
 */
export function limitHandshakes(server: SecureServer, ms: number, clock: Clock = systemClock, cut: () => void = () => undefined): void {
  /** Functions that end the limit of a peer. */
  const pending = new Map<string, () => void>();
  // The TLS socket is another object than the TCP socket that it wraps; address and port are the same.
  const key = ({ remoteAddress, remotePort }: Peer): string => `${remoteAddress} ${remotePort}`;
  server.prependListener('connection', (socket) => {
    const peer = key(socket);
    const stopTimer = after(ms, clock, () => {
      done();
      socket.destroy();
      cut();
    });
    const done = (): void => {
      stopTimer();
      if (pending.get(peer) === done) pending.delete(peer);
    };
    pending.set(peer, done);
    socket.once('close', done);
  });
  server.prependListener('secureConnection', (socket) => pending.get(key(socket))?.());
}
