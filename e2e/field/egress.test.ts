import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { sandbox } from '@drover/protocol';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, TestDrover, World } from '../harness/index.ts';

let drover: TestDrover;
let world: World;
let work: string;
let service: Server;
let servicePort: number;

/** The path in the sandboxes of the Node.js that runs this test. */
const node = '/mnt/node/node';

async function start(name: string, ...allow: string[]): Promise<void> {
  const server = ['sh', '-c', 'cd /tmp; exec /usr/bin/python3 -m http.server 8000 --bind ::'];
  await drover.begin(name, server, {
    allow,
    mounts: [create(sandbox.BindMountSchema, { source: dirname(process.execPath), target: dirname(node), readOnly: true })],
  });
}

/** Runs curl in a sandbox with the sandbox's environment, and returns the body and status. */
const curl = async (name: string, ...args: string[]): Promise<string> =>
  (await drover.exec(name, ['curl', '-sS', '-m', '10', '-w', '%{http_code}', ...args])).stdout;

beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'e2e-egress-'));
  world = await World.create('10.238.255', work);
  service = createServer((_, response) => response.end('a service of the host\n')).listen(0, '0.0.0.0');
  await new Promise((resolve) => service.once('listening', resolve));
  servicePort = (service.address() as AddressInfo).port;
  const silent = await world.silentAddresses(5);
  const hosts = join(work, 'hosts');
  const lines = [...silent.addresses, world.publicAddress].map((address) => `${address} half.world.test`);
  await writeFile(hosts, `${await readFile('/etc/hosts', 'utf8')}\n${lines.join('\n')}\n`);
  drover = await TestDrover.start(['--pool', '10.238.0.0/18', '--allow-mount', dirname(process.execPath)], undefined, hosts);
  await Promise.all([
    start('half', 'half.world.test:8080', `[${silent.network}]:8080`),
    start('anywhere', '0.0.0.0/0:8080', `0.0.0.0/0:${servicePort}`, '0.0.0.0/0', '::/0'),
    start('internet', 'internet:8080', `internet:${servicePort}`, 'internet'),
    start('nothing'),
  ]);
});

afterAll(async () => {
  service?.close();
  await drover?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
  await rm(work, { recursive: true, force: true });
});

describe('13.6: a rule for a network opens neither the host nor metadata', () => {
  test.each(['anywhere', 'internet'])('%s reaches public addresses', async (sandbox) => {
    expect(await curl(sandbox, `http://${world.publicAddress}:8080/a`)).toMatch(/^hello from the world[^]*200$/);
    // The next tests expect silence: the world may report this connection late.
    await expect.poll(() => world.heard()).not.toEqual([]);
  });

  test.each(['anywhere', 'internet'])(
    '%s reaches no private, link-local, loopback or metadata address, and not the host',
    async (sandbox) => {
      const proxy = ['--noproxy', '', '-x', 'http://10.238.0.1:3128'];
      const urls = [
        'http://169.254.169.254/latest/meta-data/',
        'http://[fd00:ec2::254]/',
        'http://100.100.100.200/',
        `http://127.0.0.1:${servicePort}/`,
        `http://[::ffff:127.0.0.1]:${servicePort}/`,
        `http://10.238.0.1:${servicePort}/`,
        `http://${world.hostAddress}:${servicePort}/`,
        `http://${world.address}:8080/`,
      ];
      world.heard();
      for (const url of urls) expect(await curl(sandbox, ...proxy, url), url).toMatch(/egress-denied[^]*403$/);
      expect(world.heard()).toEqual([]);
    },
  );

  test('the help of --allow explains a rule without a port', async () => {
    expect((await drover.run(['run', '--help'])).stdout.replaceAll(/\s+/g, ' ')).toMatch(/--allow.*internet.*ports 80 and 443/);
  });
});

describe('9.4: clients and the proxy', () => {
  test('RFC 8305: a server with five dead IPv6 addresses is reached within the time of one connection attempt', async () => {
    const { stdout, stderr } = await drover.exec('half', ['curl', '-sS', '-m', '10', 'http://half.world.test:8080/a']);
    expect({ stdout, stderr }).toEqual({ stdout: 'hello from the world: half.world.test:8080/a\n', stderr: '' });
  });

  test('an Upgrade in absolute form reaches the server, and bytes pass both ways', async () => {
    const program = `
import socket, sys
proxy, url, host = sys.argv[1], sys.argv[2], sys.argv[3]
s = socket.create_connection((proxy, 3128), timeout=10)
s.sendall(f"GET {url} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n".encode())
read = s.makefile("rb")
print(read.readline().decode().strip())
while read.readline() != b"\\r\\n": pass
s.sendall(b"over")
print(read.read(len("switched over")).decode())
`;
    const host = `${world.publicAddress}:8080`;
    const { stdout, stderr } = await drover.exec('anywhere', ['/usr/bin/python3', '-c', program, '10.238.0.1', `http://${host}/`, host]);
    expect({ stdout, stderr }).toEqual({ stdout: 'HTTP/1.1 101 Switching Protocols\nswitched over\n', stderr: '' });
  });

  test("Node.js fetches through the proxy, and reaches the sandbox's own services without it", async () => {
    const program = `for (const url of process.argv.slice(1)) console.log((await fetch(url)).status)`;
    const urls = [`http://${world.publicAddress}:8080/`, 'http://127.0.0.1:8000/', 'http://localhost:8000/', 'http://anywhere:8000/'];
    const { stdout, stderr } = await drover.exec('anywhere', [node, '--input-type=module', '-e', program, '--', ...urls]);
    expect({ stdout, stderr }).toEqual({ stdout: '200\n200\n200\n200\n', stderr: '' });
  });

  test.each(['http://127.0.0.1:8000/', 'http://127.8.8.8:8000/', 'http://localhost:8000/', 'http://nothing:8000/'])(
    '%s is the sandbox itself for curl and Python',
    async (url) => {
      expect(await curl('nothing', '-o', '/dev/null', url)).toBe('200');
      const python = `import urllib.request; print(urllib.request.urlopen(${JSON.stringify(url)}).status)`;
      if (!url.includes('127.8')) expect((await drover.exec('nothing', ['/usr/bin/python3', '-c', python])).stdout).toBe('200\n');
    },
  );

  test('a refused CONNECT is explained in its status line, and in an event with the next step', async () => {
    const { stderr } = await drover.exec('nothing', ['curl', '-sSv', '-m', '10', 'https://www.example.com/']);
    expect(stderr).toMatch(/403 this sandbox may not reach www\.example\.com:443 \(no rule\); ask .* --allow www\.example\.com/);
    for (let i = 0; i < 5; i++) await drover.exec('nothing', ['curl', '-sS', '-m', '10', 'https://www.example.com/']);
    const { id } = await drover.sandbox<{ id: string }>('nothing');
    const seen = await eventually('the event', async () => {
      const { stdout } = await drover.run(['events', '--kind', 'network', '--subject', id]);
      return stdout.includes('www.example.com') ? stdout : undefined;
    });
    expect(seen).toMatch(/EgressDenied .*nothing: CONNECT www\.example\.com:443 refused, no rule/);
    // Repeated attempts are counted into one event a minute.
    expect(seen.match(/www\.example\.com/g)).toHaveLength(1);
  });
});
