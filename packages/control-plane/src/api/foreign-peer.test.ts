import { once } from 'node:events';
import { createServer } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { init, sandbox } from '@drover/protocol';
import { describe, expect, test } from 'vitest';
import { startTestApi } from './testing/server.ts';

async function read(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}

describe('a session whose peer is an HTTP server other than init', () => {
  test.each([
    [400, 'text/plain'],
    [404, 'text/html'],
    [503, 'text/plain'],
    [200, 'text/html'],
  ])('is named as such by every call, when it responds %i with %s', async (status, type) => {
    await using api = await startTestApi();
    const hostId = await api.addHost('alpha');
    const { id } = await api.client.sandboxes.create({ name: 'box', spec: { image: 'host' } });
    await api.observe(hostId, id, { state: sandbox.SandboxState.RUNNING });
    const foreign = createServer((_, response) => response.writeHead(status, { 'content-type': type }).end('a page'));
    foreign.listen(0, '127.0.0.1');
    await once(foreign, 'listening');
    const { port } = foreign.address() as AddressInfo;
    const transport = createGrpcTransport({ baseUrl: `http://127.0.0.1:${port}`, idleConnectionTimeoutMs: 100 });
    api.sessions.connect = () => Promise.resolve(createClient(init.InitService, transport));
    const refusal = {
      code: 'session-unavailable',
      message: 'no session with sandbox box: its peer is not an init of Drover',
      hint: expect.stringContaining('`drover sandbox explain box`'),
    };
    try {
      const { sandboxes } = api.client;
      await expect(sandboxes.exec('box', { argv: ['true'] }).exit).rejects.toMatchObject(refusal);
      await expect(sandboxes.execs('box')).rejects.toMatchObject(refusal);
      await expect(read(sandboxes.copyOut('box', '/etc'))).rejects.toMatchObject(refusal);
      await expect(sandboxes.copyIn('box', '/tmp', (async function* () {})())).rejects.toMatchObject(refusal);
      await expect(read(sandboxes.forward('box', 80))).rejects.toMatchObject(refusal);
      await expect(read(sandboxes.logs('box', { follow: true }))).rejects.toMatchObject(refusal);
      // Init is not needed for what the host keeps.
      api.hub.logs.set(hostId, []);
      await read(sandboxes.logs('box'));
    } finally {
      foreign.close();
    }
  });
});
