import { createServer, type AddressInfo, type Socket } from 'node:net';
import { pipeline } from 'node:stream/promises';
import { DroverError, errnoOf, reasonOf } from '@drover/foundation';
import type { Cli } from '../../cli.ts';
import { forwardKeepaliveMs } from '../../limits.ts';
import { parseForward } from '../../parse.ts';

/** forwards local ports to TCP ports in the sandbox, until interrupted. */
export default async function forward(cli: Cli, [reference, pairs]: readonly [string, readonly string[]]): Promise<void> {
  const wanted = pairs.map(parseForward);
  const client = await cli.connect();
  const sandbox = await client.sandboxes.waitFor(reference, ['running'], { signal: cli.signal });
  const sockets = new Set<Socket>();
  const servers = wanted.map(({ remote }) =>
    // Without keepalive, a client that vanishes would keep its connection open, and the sandbox from idling.
    createServer({ allowHalfOpen: true, keepAlive: true, keepAliveInitialDelay: forwardKeepaliveMs }, (socket) => {
      sockets.add(socket);
      socket.on('close', () => sockets.delete(socket));
      const inside = client.sandboxes.forward(sandbox.id, remote, { signal: cli.signal });
      pipeline(socket, inside, socket).catch((thrown: unknown) => {
        socket.destroy();
        inside.destroy();
        if (!cli.signal.aborted) cli.out.note(`a connection to port ${remote} ended: ${DroverError.from(thrown).message}`);
      });
    }),
  );
  try {
    for (const [i, server] of servers.entries()) {
      const { address, local, remote } = wanted[i] as (typeof wanted)[number];
      await new Promise<void>((resolve, reject) => {
        server.once('error', (error) => reject(cannotListen(error, address, local, remote)));
        server.listen(local, address, () => resolve());
      });
      const bound = server.address() as AddressInfo;
      if (cli.out.json) cli.out.record({ address: bound.address, localPort: bound.port, remotePort: remote });
      else cli.out.line(`forwarding ${bound.address}:${bound.port} to port ${remote} of ${reference}; Ctrl-C ends it`);
    }
    await new Promise<void>((resolve) => {
      if (cli.signal.aborted) resolve();
      cli.signal.addEventListener('abort', () => resolve(), { once: true });
    });
  } finally {
    for (const socket of sockets) socket.destroy();
    for (const server of servers) server.close();
  }
}

/** Exported for its tests. */
export function cannotListen(error: Error, address: string, local: number, remote: number): DroverError {
  if (errnoOf(error) !== 'EADDRINUSE') {
    return new DroverError(DroverError.from(error, 'invalid-argument').code, `cannot listen on ${address}:${local}: ${reasonOf(error)}`, {
      hint: 'use an address of this machine, and a port above 1023 unless you are root',
      cause: error,
    });
  }
  return new DroverError('port-in-use', `${address}:${local} is in use by another program`, {
    hint: `name another local port, or 0:${remote} for any free port`,
    cause: error,
  });
}
