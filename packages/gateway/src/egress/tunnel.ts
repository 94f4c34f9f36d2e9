import type { Socket } from 'node:net';
import { limits } from '../limits.ts';

/**
 * Joins two connections until both directions have ended, or one breaks. When one direction ends, the other stays open (half-close) under a
 * shorter idle limit. Never rejects.
 */
export async function tunnel(client: Socket, server: Socket, head: Buffer): Promise<void> {
  if (head.length > 0) server.write(head);
  await new Promise<void>((resolve) => {
    const destroy = (): void => {
      client.destroy();
      server.destroy();
      resolve();
    };
    const sockets = [client, server] as const;
    for (const [i, socket] of sockets.entries()) {
      const peer = sockets[1 - i] as Socket;
      socket.setTimeout(limits.idleMs, destroy);
      socket.setKeepAlive(true, 60_000);
      // A broken connection breaks the other: no byte can be carried any more.
      socket.on('error', destroy);
      socket.on('close', (hadError) => {
        if (hadError || !socket.readableEnded || !socket.writableFinished) destroy();
      });
      socket.on('end', () => {
        for (const s of sockets) s.setTimeout(limits.halfOpenIdleMs);
      });
      peer.on('finish', () => {
        if (client.writableFinished && server.writableFinished) resolve();
      });
      socket.pipe(peer);
    }
  });
}
