import { once } from 'node:events';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { create } from '@bufbuild/protobuf';
import { systemClock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { link } from '@drover/protocol';
import { Client, credentials } from '@grpc/grpc-js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { dialSandbox } from '../backends/oci/dial.ts';
import { FakeSandboxes } from './testing/index.ts';
import { AgentTunnels } from './tunnels.ts';

let server: Server;
let accepted: Promise<Socket>;
beforeEach(async () => {
  server = createServer({ allowHalfOpen: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  accepted = once(server, 'connection').then(([socket]) => socket as Socket);
});
afterEach(() => void server.close());

async function dial(): ReturnType<typeof dialSandbox> {
  return await dialSandbox({
    address: '127.0.0.1',
    port: (server.address() as AddressInfo).port,
    runDirectory: undefined,
    hasEnded: () => false,
    clock: systemClock,
    signal: AbortSignal.timeout(10_000),
  });
}

describe('L-30: a connection into a sandbox', () => {
  it('that is reset before anybody reads it is closed, and ends nothing else', async () => {
    const inside = await dial();
    const closed = new Promise((resolve) => inside.once('close', resolve));
    (await accepted).resetAndDestroy();
    // An error that nobody listens to would end the process, and this run.
    await closed;
    expect(inside.errored).toMatchObject({ code: 'ECONNRESET' });
  });

  it('whose link has ended by the time that it stands is closed, and the command says why', async () => {
    const sandboxes = new FakeSandboxes();
    const client = new Client('127.0.0.1:1', credentials.createInsecure());
    sandboxes.dialled = async () => {
      const inside = await dial();
      client.close();
      return inside;
    };
    const tunnels = new AgentTunnels(sandboxes, systemClock, silentLogger, new AbortController().signal);
    const command = create(link.OpenTunnelSchema, {
      sandboxId: 'sb-0000000000000000',
      tunnelId: 'tn-1',
      target: { case: 'init', value: true },
    });
    await expect(tunnels.open(client, command)).rejects.toMatchObject({ code: 'unavailable' });
    const far = await accepted;
    const ended = once(far.resume(), 'end');
    if (!far.readableEnded) await ended;
    far.destroy();
  });
});
