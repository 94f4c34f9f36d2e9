import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { request } from 'node:http';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { parseGatewayArguments } from './main.ts';

test('the program takes places to listen, a user, and sockets that were opened for it', () => {
  const argv = ['--control-socket', '/s', '--listen', '10.0.0.1:3128', '--listen', '[::1]:0', '--user', '9:8'];
  expect(parseGatewayArguments(argv, { LISTEN_FDS: '2' })).toEqual({
    controlSocket: '/s',
    listen: [{ fd: 3 }, { fd: 4 }, { host: '10.0.0.1', port: 3128 }, { host: '::1', port: 0 }],
    runAs: { uid: 9, gid: 8 },
  });
});

test.each([
  [['--listen', '10.0.0.1:3128']],
  [['--control-socket', '/s']],
  [['--control-socket', '/s', '--listen', 'name.example:3128']],
  [['--control-socket', '/s', '--listen', '10.0.0.1']],
  [['--control-socket', '/s', '--listen', '10.0.0.1:3128', '--user', 'root']],
  [['--control-socket', '/s', '--listen', '10.0.0.1:3128', '--user', '0:0']],
  [['--control-socket', '/s', '--unknown']],
])('%j is refused', (argv) => {
  expect(() => parseGatewayArguments(argv, {})).toThrow(expect.objectContaining({ code: 'invalid-argument' }));
});

test('G-9: a connection made before the gateway is up waits in the backlog of the socket that was handed over', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-gateway-'));
  const listener = createServer().listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const { port } = listener.address() as AddressInfo;
  // Node has no public way to a listener's descriptor.
  const { fd } = (listener as unknown as { _handle: { fd: number } })._handle;
  const child = spawn(
    process.execPath,
    ['--conditions=development', join(import.meta.dirname, 'bin.ts'), '--control-socket', join(directory, 'c.sock')],
    {
      stdio: ['ignore', 'ignore', 'ignore', fd],
      env: { LISTEN_FDS: '1' },
    },
  );
  try {
    // From here on the child alone has the socket.
    listener.close();
    const answer = await new Promise<number | undefined>((resolve, reject) => {
      request({ host: '127.0.0.1', port, path: 'http://a.test/', headers: { host: 'a.test' } }, (a) => resolve(a.resume().statusCode))
        .on('error', reject)
        .end();
    });
    expect(answer).toBe(403);
  } finally {
    child.kill('SIGKILL');
    await once(child, 'exit');
    await rm(directory, { recursive: true, force: true });
  }
});
