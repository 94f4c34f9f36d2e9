import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { initPort } from '@drover/init';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, isAlive, TestDrover, tool, tracesOf, World } from './harness/index.ts';

/** One probe target: `tcp`, `udp` or `icmp`, an address, a port. */
type Target = readonly [kind: 'tcp' | 'udp' | 'icmp', address: string, port: number];

let drover: TestDrover;
let world: World;
let work: string;
let victim: string;
let gateway: string;
/** A listener on every address of this machine, IPv4 and IPv6. */
let service: Server;
let servicePort: number;
let ports: { readonly apiPort: number; readonly linkPort: number };
let everything: readonly Target[];

/**
 * Probes all targets concurrently and prints those that reacted: with a connection, a refusal (a packet returned) or a reply.
 * Silence and the kernel's own "unreachable" do not count.
 */
const probe = `
import errno, json, os, socket, struct, sys, threading
heard = []
def attempt(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        if kind == "tcp":
            s = socket.socket(family, socket.SOCK_STREAM)
            s.settimeout(1.5)
            s.connect(socket.getaddrinfo(address, port)[0][4])
            heard.append([kind, address, port, "connected"])
        elif kind == "udp":
            s = socket.socket(family, socket.SOCK_DGRAM)
            s.settimeout(1.5)
            s.connect((address, port))
            s.send(b"\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x07example\\x03com\\x00\\x00\\x01\\x00\\x01")
            s.recv(512)
            heard.append([kind, address, port, "answered"])
        else:
            s = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            s.settimeout(1.5)
            s.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FE, 1, 0), (address, 0))
            while True:
                data, who = s.recvfrom(2048)
                if who[0] == address and data[20] == 0:
                    heard.append([kind, address, port, "answered"])
                    return
    except ConnectionRefusedError:
        heard.append([kind, address, port, "refused"])
    except OSError:
        pass
threads = [threading.Thread(target=attempt, args=target) for target in json.loads(sys.argv[1])]
for t in threads: t.start()
for t in threads: t.join()
print(json.dumps(sorted(heard)))
`;

const python = (targets: readonly Target[]): string[] => ['/usr/bin/python3', '-c', probe, JSON.stringify(targets)];
const heardIn = (stdout: string): unknown => JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as unknown;

async function start(name: string, ...allow: string[]): Promise<string> {
  const server = ['sh', '-c', 'cd /tmp; exec /usr/bin/python3 -m http.server 8000'];
  return (await drover.begin<{ address: string }>(name, server, { allow })).address;
}

/** Returns the body and status of a curl request in the sandbox, through the proxy of its environment. */
async function curl(
  sandbox: string,
  ...args: readonly string[]
): Promise<{ readonly code: number; readonly stdout: string; readonly stderr: string }> {
  return await drover.exec(sandbox, ['curl', '-sS', '-m', '10', '-w', '%{http_code}', ...args]);
}

/** Runs a command in a sandbox's network namespace with root's privileges on this machine, which exceed those of root in the sandbox. */
async function asRootOfItsNetwork(sandbox: string, ...argv: readonly string[]): Promise<string> {
  const { id } = await drover.sandbox<{ id: string }>(sandbox);
  const pid = (await readFile(join(drover.data, 'host', 'sandboxes', id, 'init.pid'), 'utf8')).trim();
  return await tool('nsenter', '-t', pid, '-n', '--', ...argv);
}

beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'e2e-network-'));
  world = await World.create('10.218.255', work);
  service = createServer((socket) => {
    // Probes break their connections off.
    socket.on('error', () => undefined);
    socket.end('a service of the host\n');
  }).listen(0, '::');
  await once(service, 'listening');
  servicePort = (service.address() as AddressInfo).port;
  drover = await TestDrover.start(['--pool', '10.218.64.0/18', '--listen', '0.0.0.0:0']);
  ports = JSON.parse(await readFile(join(drover.data, 'control-plane', 'server.json'), 'utf8')) as typeof ports;
  victim = await start('victim');
  gateway = '10.218.64.1';
  const own = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
  const addresses = own.filter(({ internal }) => !internal).map(({ address }) => address.replace(/%.*$/, ''));
  const hostPorts = [ports.apiPort, ports.linkPort, servicePort, 22, 53];
  everything = [
    ...[...new Set([...addresses, gateway])].flatMap((address) => hostPorts.map((port): Target => ['tcp', address, port])),
    ...[8000, initPort].map((port): Target => ['tcp', victim, port]),
    ...[8080, 8443].map((port): Target => ['tcp', world.address, port]),
    ...[world.address, world.publicAddress, gateway, '8.8.8.8', '1.1.1.1'].map((address): Target => ['udp', address, 53]),
    ...['169.254.169.254', '169.254.170.2', '100.100.100.200'].map((address): Target => ['tcp', address, 80]),
    ...['fe80::1%eth0', 'fd00:ec2::254', '2606:4700:4700::1111', '::ffff:169.254.169.254'].map((address): Target => ['tcp', address, 80]),
    ['tcp', `::ffff:${world.address}`, 8080],
    ...[world.address, gateway, victim].map((address): Target => ['icmp', address, 0]),
  ];
});

afterAll(async () => {
  service?.close();
  const left = drover === undefined ? undefined : await tracesOf(drover);
  await drover?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
  await rm(work, { recursive: true, force: true });
  expect(await left?.()).toEqual([]);
});

describe('R-16: default deny', () => {
  test('the probe detects every reachable target when it runs on the host', async () => {
    const reachable: Target[] = [
      ['tcp', world.address, 8080],
      ['tcp', world.address, 8000],
      ['udp', world.address, 53],
      ['icmp', world.address, 0],
      ['tcp', world.hostAddress, servicePort],
      ['tcp', world.hostAddress, ports.apiPort],
    ];
    const [file = '', ...args] = python(reachable);
    const heard = heardIn(await tool(file, ...args)) as string[][];
    expect(heard.map((entry) => entry.slice(0, 3).join(' ')).toSorted()).toEqual(reachable.map((entry) => entry.join(' ')).toSorted());
    expect(world.heard().length).toBeGreaterThan(0);
  });

  test('a new sandbox reaches no sandbox, host service, control plane, metadata service, DNS, IPv6 or ICMP target', async () => {
    const { code, stdout } = await drover.run(['run', '--rm', '-n', 'host', '--', ...python(everything)]);
    expect(code).toBe(0);
    expect(heardIn(stdout)).toEqual([]);
    expect(world.heard()).toEqual([]);
  });

  test('root of its network namespace reaches nothing either with added addresses, added routes and forged sources', async () => {
    const address = await start('forger');
    const link = (await asRootOfItsNetwork('forger', 'ip', '-o', '-4', 'route', 'show')).match(/dev (\S+)/)?.[1] ?? '';
    expect(link).not.toBe('');
    const inside = async (...argv: readonly string[]): Promise<string> => await asRootOfItsNetwork('forger', ...argv);
    await inside('ip', 'address', 'add', `${victim}/32`, 'dev', link);
    await inside('ip', '-6', 'address', 'add', 'fd00:218::2/64', 'dev', link, 'nodad').catch(() => 'IPv6 may be off altogether');
    await inside('ip', 'route', 'replace', 'default', 'via', gateway, 'dev', link, 'onlink', 'src', victim);
    expect(heardIn(await inside(...python(everything.filter(([, to]) => to !== victim))))).toEqual([]);
    await inside('ip', 'address', 'del', `${victim}/32`, 'dev', link);
    await inside('ip', 'route', 'replace', 'default', 'via', gateway, 'dev', link, 'onlink', 'src', address);
    await inside('ip', 'route', 'replace', world.address, 'via', gateway, 'dev', link, 'onlink');
    expect(heardIn(await inside(...python(everything)))).toEqual([]);
    expect(world.heard()).toEqual([]);
    // The imitated sandbox has lost no service and received no packet.
    expect(await drover.exec('victim', ['curl', '-s', '--noproxy', '*', 'http://127.0.0.1:8000/'])).toMatchObject({ code: 0 });
    await drover.remove('forger');
  });

  test('root in the sandbox may not change its network', async () => {
    const script = 'ip route add 10.0.0.0/8 dev eth0; echo $?; ip link add x type dummy; echo $?';
    const { stdout } = await drover.exec('victim', ['sh', '-c', script]);
    expect(stdout).toMatch(/^\d+\n\d+\n$/);
    expect(stdout).not.toMatch(/^0$/m);
  });

  test('init refuses connections to its port from inside the sandbox and accepts those of the host', async () => {
    const script = `
import socket, ssl
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
s = context.wrap_socket(socket.create_connection(("${victim}", ${initPort}), timeout=5))
s.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\0\\0\\0\\4\\0\\0\\0\\0\\0")
print("answered", s.recv(100))`;
    const { code, stdout, stderr } = await drover.exec('victim', ['/usr/bin/python3', '-c', script]);
    expect(code).toBe(1);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/ConnectionRefusedError/);
  });
});

describe('R-16: --allow', () => {
  const page = (path: string): string => `http://${world.address}:8080${path}`;

  beforeAll(async () => {
    // The form in which a person writes it.
    const allow = [8080, 8443].flatMap((port) => ['--allow', `${world.address}:${port}`]);
    expect((await drover.run(['run', '-d', '--name', 'allowed', ...allow, 'host', '--', 'sleep', '600'])).code).toBe(0);
  });

  test('HTTP and TLS reach the allowed address through the gateway', async () => {
    expect(await curl('allowed', page('/a'))).toMatchObject({ code: 0, stdout: `hello from the world: ${world.address}:8080/a\n200` });
    expect(await curl('allowed', '-k', `https://${world.address}:8443/b`)).toMatchObject({
      code: 0,
      stdout: `hello from the world: ${world.address}:8443/b\n200`,
    });
    expect(new Set(world.heard())).toEqual(new Set([world.hostAddress]));
  });

  test('no packet reaches the allowed address past the gateway', async () => {
    expect((await curl('allowed', '-m', '2', '--noproxy', '*', page('/'))).code).not.toBe(0);
    expect(world.heard()).toEqual([]);
  });

  test('an address that one sandbox may reach is refused to another, with the reason and the flag to ask for', async () => {
    const { code, stdout } = await curl('victim', page('/'));
    expect({ code, status: stdout.slice(-3) }).toEqual({ code: 0, status: '403' });
    expect(JSON.parse(stdout.slice(0, -3))).toMatchObject({
      error: 'egress-denied',
      host: world.address,
      port: 8080,
      hint: expect.stringContaining('--allow') as string,
    });
    const tls = await curl('victim', '-k', `https://${world.address}:8443/`);
    expect(tls.code).toBe(56);
    expect(tls.stderr).toMatch(/403/);
    expect(world.heard()).toEqual([]);
  });

  test('another port of an allowed address, and an address without its port, stay closed', async () => {
    expect((await curl('allowed', `http://${world.address}:8000/`)).stdout).toMatch(/egress-denied[^]*403$/);
    await start('portless', world.address);
    expect((await curl('portless', page('/'))).stdout).toMatch(/egress-denied[^]*403$/);
    await drover.remove('portless');
    expect(world.heard()).toEqual([]);
  });

  test('the gateway does not open the host itself or the control plane', async () => {
    for (const url of [`http://127.0.0.1:${servicePort}/`, `http://${gateway}:${servicePort}/`, 'http://169.254.169.254/'])
      expect((await curl('allowed', '--noproxy', '', '-x', `http://${gateway}:3128`, url)).stdout).toMatch(/egress-denied[^]*403$/);
  });

  test('*.name allows the names below it; a private address behind a name must be allowed explicitly', async () => {
    const hosts = join(work, 'hosts');
    const names = [`${world.publicAddress} www.world.test world.test`, `${world.address} inner.world.test`];
    await writeFile(hosts, `${await readFile('/etc/hosts', 'utf8')}\n${names.join('\n')}\n`);
    await tool('mount', '--bind', hosts, '/etc/hosts');
    try {
      await start('below', '*.world.test:8080');
      expect(await curl('below', 'http://www.world.test:8080/c')).toMatchObject({
        code: 0,
        stdout: 'hello from the world: www.world.test:8080/c\n200',
      });
      expect((await curl('below', 'http://world.test:8080/')).stdout).toMatch(/egress-denied[^]*403$/);
      const inner = await curl('below', 'http://inner.world.test:8080/');
      expect(inner.stdout).toMatch(/egress-denied[^]*403$/);
      expect(inner.stdout).toMatch(/private/);
      await start('named', '*.world.test:8080', `${world.address}:8080`);
      expect((await curl('named', 'http://inner.world.test:8080/')).stdout).toMatch(/^hello[^]*200$/);
    } finally {
      await execa('umount', ['/etc/hosts'], { reject: false });
      await drover.remove(
        ...(await drover.sandboxes<{ name: string }>()).map(({ name }) => name).filter((name) => /^(below|named)$/.test(name)),
      );
      world.heard();
    }
  });

  test('kill -9 of the gateway opens nothing, and the next gateway has every sandbox’s policy', async () => {
    const pid = await drover.pidOf('gateway');
    process.kill(pid, 'SIGKILL');
    const closed = await drover.exec('victim', python(everything.filter(([, to]) => to !== victim)));
    expect(heardIn(closed.stdout)).toEqual([]);
    await eventually('the old gateway has exited', () => !isAlive(pid));
    await eventually('the allowed sandbox reaches the address again', async () =>
      (await curl('allowed', page('/again'))).stdout.endsWith('/again\n200'),
    );
    expect((await curl('victim', page('/'))).stdout).toMatch(/egress-denied[^]*403$/);
    expect(new Set(world.heard())).toEqual(new Set([world.hostAddress]));
  });
});
