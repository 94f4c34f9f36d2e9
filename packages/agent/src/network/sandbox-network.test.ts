import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { createSocket } from 'node:dgram';
import { connect } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { newSandboxId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { EgressProxy, PolicyTable, type SandboxPolicy } from '@drover/gateway';
import { initPort } from '@drover/init';
import { interfaceNames } from '@drover/linux';
import { parseAllowList, parseSandboxPolicy } from '@drover/spec/policy';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import type { NetworkAttachment } from './index.ts';
import { ControlListener, SandboxNetwork, type AddressHolder, type SandboxNetworkOptions } from './index.ts';
import { startOutside, type Outside } from './testing/outside.ts';

const run = promisify(execFile);
const proxyPort = 31_281;
const controlPort = 31_282;
const pool = '10.252.64.0/24';
const instance = `t${process.pid.toString(36)}`.slice(0, 8);

let state: string;
let web: Outside;
/** A service of the host, on all its addresses. */
let hostService: Server;
let hostPort: number;
const opened: SandboxNetwork[] = [];
let proxy: EgressProxy | undefined;
let table: PolicyTable;
let applied: SandboxPolicy[] = [];

beforeAll(async () => {
  web = await startOutside('10.252.65');
  hostService = createServer((_, response) => response.end('host')).listen(0, '0.0.0.0');
  await new Promise((resolve) => hostService.once('listening', resolve));
  hostPort = (hostService.address() as { port: number }).port;
});
afterAll(async () => {
  hostService.close();
  await web[Symbol.asyncDispose]();
});

afterEach(async () => {
  await proxy?.close();
  proxy = undefined;
  for (const network of opened.splice(0)) {
    for (const id of ids.splice(0)) await network.release(id).catch(() => undefined);
    await network.close().catch(() => undefined);
  }
  // Whatever a failed test left, by this instance's own names.
  await run('nft', ['delete', 'table', 'inet', `drover-${instance}`]).catch(() => undefined);
  for (const name of await leftovers())
    await run('ip', name.startsWith('drover') ? ['netns', 'del', name] : ['link', 'del', name]).catch(() => undefined);
  await rm(state, { recursive: true, force: true });
});

const ids: SandboxId[] = [];
function id(): SandboxId {
  const made = newSandboxId();
  ids.push(made);
  return made;
}

/** A network whose gateway is a proxy in this process. */
async function start(options: Partial<SandboxNetworkOptions> = {}, known: ReadonlySet<SandboxId> = new Set()): Promise<SandboxNetwork> {
  state = options.stateDirectory ?? (await mkdtemp(join(tmpdir(), 'drover-network-')));
  table ??= new PolicyTable();
  const network: SandboxNetwork = new SandboxNetwork({
    stateDirectory: state,
    instance,
    pool,
    proxyPort,
    controlPort,
    logger: silentLogger,
    warm: 1,
    applyGateway: async (policies) => {
      if (proxy === undefined) {
        table = new PolicyTable();
        proxy = new EgressProxy({ table, logger: silentLogger });
        await proxy.listen({ host: network.gatewayAddress, port: proxyPort });
      }
      applied = [...policies];
      table.apply({ version: table.version + 1n, base: undefined, policies, removed: [] });
    },
    ...options,
  });
  opened.push(network);
  await network.start(known);
  return network;
}

async function inside(at: NetworkAttachment, ...argv: string[]): Promise<{ code: number; out: string }> {
  try {
    return { code: 0, out: (await run('nsenter', [`--net=${at.namespacePath}`, ...argv])).stdout };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, out: stdout + stderr };
  }
}

const curl = (at: NetworkAttachment, ...args: string[]) => inside(at, 'curl', '-sS', '--noproxy', '', '-m', '2', ...args);
const viaProxy = (at: NetworkAttachment, ...args: string[]) => curl(at, '-x', `http://${at.gatewayAddress}:${at.proxyPort}`, ...args);

/** A TCP connection from inside, with a route to everywhere as root inside could add: does it come up? */
async function connects(at: NetworkAttachment, host: string, port: number, bind = '', localPort = 0): Promise<boolean> {
  const program = `
    const socket = require('node:net').connect({ host: ${JSON.stringify(host)}, port: ${port}, localPort: ${localPort}, ${bind && `localAddress: ${JSON.stringify(bind)}`} });
    socket.on('connect', () => { console.log('connected'); process.exit(0) }).on('error', (e) => { console.log(e.code); process.exit(1) });
    setTimeout(() => { console.log('timeout'); process.exit(1) }, 400);`;
  return (await inside(at, process.execPath, '-e', program)).code === 0;
}

/** Servers inside that say back what they hear. */
async function echoes(at: NetworkAttachment, ...ports: readonly number[]): Promise<ChildProcess> {
  const program = `
    for (const port of [${ports.join()}])
      require('node:net').createServer((s) => s.on('error', () => {}).pipe(s)).listen(port, ${JSON.stringify(at.address)}, () => console.log('up'));`;
  const child = spawn('nsenter', [`--net=${at.namespacePath}`, process.execPath, '-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
  let up = '';
  for await (const data of child.stdout) if ((up += String(data)).split('up').length > ports.length) break;
  return child;
}

/** A connection of the host's to a port inside, and whether it is answered within `ms`. */
function dialIn(at: NetworkAttachment, port: number): { answers(ms?: number): Promise<boolean>; close(): void } {
  const socket = connect(port, at.address).on('error', () => undefined);
  return {
    answers: async (ms = 500) => {
      const { promise, resolve } = Promise.withResolvers<boolean>();
      const timer = setTimeout(() => resolve(false), ms);
      socket.once('data', () => resolve(true));
      socket.write('x');
      return await promise.finally(() => clearTimeout(timer));
    },
    close: () => socket.destroy(),
  };
}

/** Sends a UDP datagram from inside. */
async function sends(at: NetworkAttachment, host: string, port: number): Promise<void> {
  const program = `const s = require('node:dgram').createSocket(${JSON.stringify(host.includes(':') ? 'udp6' : 'udp4')});
    s.send('x', ${port}, ${JSON.stringify(host)}, () => s.close())`;
  await inside(at, process.execPath, '-e', program);
}

/** Where sandboxes reach the control plane; here it says back what it hears. */
async function listen(
  network: SandboxNetwork,
  carried: (from: AddressHolder, peerAddress: string) => void = () => undefined,
): Promise<ControlListener> {
  const listener = new ControlListener({
    host: network.gatewayAddress,
    port: controlPort,
    holderOf: (address) => network.holderOf(address),
    carry: (from, peerAddress, connection) => {
      carried(from, peerAddress);
      connection.pipe(connection);
    },
    logger: silentLogger,
  });
  await listener.listen();
  return listener;
}

/** Does the control listener answer what is said to it from inside? */
async function talks(at: NetworkAttachment): Promise<boolean> {
  const program = `
    const socket = require('node:net').connect(${at.controlPort}, ${JSON.stringify(at.gatewayAddress)}, () => socket.write('hello'));
    socket.on('data', (data) => process.exit(String(data) === 'hello' ? 0 : 1)).on('error', () => process.exit(1));
    setTimeout(() => process.exit(1), 1000);`;
  return (await inside(at, process.execPath, '-e', program)).code === 0;
}

async function routeEverywhere(at: NetworkAttachment): Promise<void> {
  await inside(at, 'ip', 'route', 'add', 'default', 'via', at.gatewayAddress, 'dev', 'eth0', 'onlink');
}

async function leftovers(): Promise<string[]> {
  const links = interfaceNames().filter((n) => n.startsWith(`d${instance}`));
  const names = (await readdir('/run/netns').catch(() => [])).filter((n) => n.startsWith(`drover-${instance}-`));
  return [...links, ...names];
}

async function hasTable(): Promise<boolean> {
  return (await run('nft', ['list', 'tables'])).stdout.split('\n').includes(`table inet drover-${instance}`);
}

describe('R-16: a sandbox reaches the gateway and nothing else', () => {
  test('R-16: an allowed address passes through the proxy, by HTTP and by CONNECT; another is refused with a reason', async () => {
    const network = await start();
    const sandbox = id();
    const at = await network.acquire(sandbox);
    await network.applyPolicy(sandbox, parseAllowList([web.origin]));

    expect(await viaProxy(at, `http://${web.origin}/a`)).toEqual({ code: 0, out: 'hello /a\n' });
    expect(await viaProxy(at, '-p', `http://${web.origin}/b`)).toEqual({ code: 0, out: 'hello /b\n' });
    const refused = JSON.parse((await viaProxy(at, 'http://192.0.2.200/')).out) as Record<string, unknown>;
    expect(refused).toMatchObject({ error: 'egress-denied', sandbox, host: '192.0.2.200', port: 80, method: 'GET', rule: 'no rule' });
  });

  test('R-16: no other sandbox, no service of the host on any of its addresses, no metadata address, with a default route added inside', async () => {
    const network = await start();
    const [a, b] = [await network.acquire(id()), await network.acquire(id())];
    await routeEverywhere(a);
    await routeEverywhere(b);
    const listener = spawn('nsenter', [
      `--net=${b.namespacePath}`,
      process.execPath,
      '-e',
      'require("node:net").createServer().listen(7000, () => console.log("up"))',
    ]);
    try {
      await new Promise((resolve) => listener.stdout.once('data', resolve));
      // The listener does listen: the host reaches it, as it must reach init.
      await new Promise<void>((resolve, reject) =>
        connect(7000, b.address, function (this: { destroy(): void }) {
          this.destroy();
          resolve();
        }).on('error', reject),
      );
      expect(await connects(a, b.address, 7000)).toBe(false);
    } finally {
      listener.kill('SIGKILL');
    }
    const hostAddresses = Object.values(networkInterfaces())
      .flatMap((l) => l ?? [])
      .filter((i) => i.family === 'IPv4' && i.address !== '127.0.0.1');
    expect(hostAddresses.map((i) => i.address)).toContain(a.gatewayAddress);
    for (const { address } of hostAddresses) expect(await connects(a, address, hostPort), address).toBe(false);
    expect(await connects(a, '169.254.169.254', 80)).toBe(false);
    expect(await connects(a, a.gatewayAddress, proxyPort)).toBe(true);
    // Its own source address, or none: the neighbour's is refused even towards the proxy.
    await inside(a, 'ip', 'addr', 'add', `${b.address}/32`, 'dev', 'eth0');
    expect(await connects(a, a.gatewayAddress, proxyPort, b.address)).toBe(false);
    expect(await connects(a, a.gatewayAddress, proxyPort, a.address)).toBe(true);
  });

  test("R-16: the gateway's user answers sandboxes and reaches none; root of the host does, and nobody inside reaches init's port", async () => {
    const network = await start();
    const at = await network.acquire(id());
    const server = await echoes(at, initPort, 7007);
    try {
      const fromHost = async (port: number, uid: number): Promise<string> => {
        const program = `require('node:net').connect(${port}, '${at.address}', () => { console.log('connected'); process.exit() }).on('error', (e) => console.log(e.code)); setTimeout(() => process.exit(), 400)`;
        return (await run(process.execPath, ['-e', program], { uid })).stdout.trim();
      };
      expect([await fromHost(initPort, 0), await fromHost(7007, 0)]).toEqual(['connected', 'connected']);
      expect([await fromHost(initPort, 64_213), await fromHost(7007, 64_213)]).toEqual(['', 'ECONNREFUSED']);
      expect([await connects(at, at.address, initPort), await connects(at, at.address, 7007)]).toEqual([false, true]);
    } finally {
      server.kill('SIGKILL');
    }
  });

  test('R-16: nothing but TCP to the proxy gets past the host end: no DNS, no ICMP, no IPv6, nothing forwarded', async () => {
    const network = await start();
    const at = await network.acquire(id());
    await routeEverywhere(at);
    expect((await inside(at, 'cat', '/proc/sys/net/ipv6/conf/all/disable_ipv6')).out.trim()).toMatch(/^1$|No such file/);
    // Root inside switches IPv6 on again and gives itself an address.
    await inside(
      at,
      'sh',
      '-c',
      'echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip addr add fe80::2/64 dev eth0 nodad',
    );
    // On at the host's end too, where it is off: the rules alone must hold.
    await writeFile(`/proc/sys/net/ipv6/conf/${at.interface}/disable_ipv6`, '0');
    // Counters before the rules and behind them, ahead of routing: what the sandbox sent, and what got past.
    const seen = `seen-${instance}`;
    const kinds = ['meta nfproto ipv4 meta l4proto udp', 'meta nfproto ipv4 meta l4proto icmp', 'meta nfproto ipv6', 'meta l4proto tcp'];
    const chain = (name: string, priority: number) => `add chain inet ${seen} ${name} { type filter hook prerouting priority ${priority}; }
${kinds.map((kind) => `add rule inet ${seen} ${name} iifname "${at.interface}" ${kind} counter`).join('\n')}\n`;
    const counts = async (name: string): Promise<number[]> => {
      const { stdout } = await run('nft', ['list', 'chain', 'inet', seen, name]);
      return [...stdout.matchAll(/packets (\d+)/g)].map((m) => Number(m[1]));
    };
    try {
      const child = run('nft', ['-f', '-']);
      child.child.stdin?.end(`add table inet ${seen}\n${chain('before', -400)}${chain('behind', -50)}`);
      await child;
      for (const host of [at.gatewayAddress, '192.0.2.53', 'fe80::1%eth0', 'ff02::1%eth0']) await sends(at, host, 53);
      await connects(at, '192.0.2.7', 443);
      // A datagram to a closed port inside has the sandbox answer with ICMP.
      const socket = createSocket('udp4');
      await new Promise((resolve) => socket.send('x', 9, at.address, resolve));
      socket.close();
      const sent = await counts('before');
      expect(
        sent.every((n) => n > 0),
        `sent: ${sent.join()}`,
      ).toBe(true);
      expect(await counts('behind')).toEqual([0, 0, 0, 0]);
      // The counters do count: the proxy's packets get there.
      await connects(at, at.gatewayAddress, proxyPort);
      expect((await counts('behind'))[3]).toBeGreaterThan(0);
    } finally {
      await run('nft', ['delete', 'table', 'inet', seen]);
    }
  });

  test('R-16: before any policy, and at an address that the gateway does not know, everything is refused', async () => {
    const network = await start();
    const at = await network.acquire(id());
    const answer = JSON.parse((await viaProxy(at, `http://${web.origin}/`)).out) as Record<string, unknown>;
    expect(answer).toMatchObject({ error: 'egress-denied', rule: 'no rule' });
  });

  test('R-16: the rules name every interface before it exists, so the first packet meets them', async () => {
    const network = await start({ warm: 0 });
    const rules = (await run('nft', ['list', 'table', 'inet', `drover-${instance}`])).stdout;
    const at = await network.acquire(id());
    expect((await run('nft', ['list', 'table', 'inet', `drover-${instance}`])).stdout).toBe(rules);
    expect(rules).toContain(`"${at.interface}" . ${at.address}`);
  });

  test('I-4: a sandbox that is cut does not reach the proxy, and does again when it is restored; each twice is once', async () => {
    const network = await start();
    const sandbox = id();
    const at = await network.acquire(sandbox);
    expect(await connects(at, at.gatewayAddress, proxyPort)).toBe(true);
    await network.setCut(sandbox, true);
    await network.setCut(sandbox, true);
    expect(await connects(at, at.gatewayAddress, proxyPort)).toBe(false);
    await network.setCut(sandbox, false);
    await network.setCut(sandbox, false);
    expect(await connects(at, at.gatewayAddress, proxyPort)).toBe(true);
  });

  test('I-4: a cut stops what stands too: a transfer through the proxy, a forwarded port; init and the control listener stay reachable', async () => {
    const network = await start();
    const sandbox = id();
    const at = await network.acquire(sandbox);
    await network.applyPolicy(sandbox, parseAllowList([web.origin]));
    const control = await listen(network);
    const servers = await echoes(at, initPort, 7007);
    const [session, forward] = [dialIn(at, initPort), dialIn(at, 7007)];
    const proxyUrl = `http://${at.gatewayAddress}:${at.proxyPort}`;
    const download = spawn('nsenter', [`--net=${at.namespacePath}`, 'curl', '-sSN', '-x', proxyUrl, `http://${web.origin}/endless`]);
    try {
      let received = 0;
      download.stdout.on('data', (data: Buffer) => (received += data.length));
      const grows = async (from: number): Promise<void> => await vi.waitFor(() => expect(received).toBeGreaterThan(from), 5000);
      await grows(1000);
      expect([await session.answers(), await forward.answers(), await talks(at)]).toEqual([true, true, true]);

      await network.setCut(sandbox, true);
      expect([await session.answers(), await forward.answers(), await talks(at)]).toEqual([true, false, true]);
      // What had arrived inside by then has been read there meanwhile.
      const atCut = received;
      const [again, elsewhere] = [dialIn(at, initPort), dialIn(at, 7007)];
      expect([await again.answers(), await elsewhere.answers()]).toEqual([true, false]);
      for (const dialled of [again, elsewhere]) dialled.close();
      expect(received).toBe(atCut);

      await network.setCut(sandbox, false);
      await grows(atCut);
      const restored = dialIn(at, 7007);
      expect([await session.answers(), await restored.answers(2000), await talks(at)]).toEqual([true, true, true]);
      restored.close();
    } finally {
      for (const dialled of [session, forward]) dialled.close();
      for (const child of [download, servers]) child.kill('SIGKILL');
      await control.close();
    }
  });

  test("I-4: a cut sandbox gets out by no port: not from init's own, not to another service of the host", async () => {
    const network = await start();
    const sandbox = id();
    const at = await network.acquire(sandbox);
    const control = await listen(network);
    try {
      await network.setCut(sandbox, true);
      for (const localPort of [0, initPort, controlPort, proxyPort]) {
        expect(await connects(at, at.gatewayAddress, proxyPort, '', localPort), `from ${localPort}`).toBe(false);
        expect(await connects(at, at.gatewayAddress, hostPort, '', localPort), `from ${localPort}`).toBe(false);
      }
      expect(await connects(at, at.gatewayAddress, controlPort)).toBe(true);
      await network.setCut(sandbox, false);
      // The port was not the reason.
      expect(await connects(at, at.gatewayAddress, proxyPort, '', initPort)).toBe(true);
    } finally {
      await control.close();
    }
  });

  test('I-4: a revoked sandbox does not reach the control listener, cut or not, and the next agent keeps that', async () => {
    const first = await start({ warm: 0 });
    const sandbox = id();
    const at = await first.acquire(sandbox);
    let control = await listen(first);
    expect(await talks(at)).toBe(true);
    for (const cut of [false, true]) {
      await first.setCut(sandbox, cut);
      await first.setRegistrationClosed(sandbox, true);
      expect(await talks(at)).toBe(false);
      await first.setRegistrationClosed(sandbox, false);
      expect(await talks(at)).toBe(true);
    }
    await first.setRegistrationClosed(sandbox, true);
    await control.close();
    await first.close();
    opened.length = 0;
    const second = await start({ stateDirectory: state, warm: 0 }, new Set([sandbox]));
    control = await listen(second);
    expect(await talks(at)).toBe(false);
    await control.close();
  });

  test('I-4, R-9: a cut is in force from the first packet of the next network too, and does not go to whom the address goes later', async () => {
    const first = await start({ warm: 0 });
    const sandbox = id();
    const at = await first.acquire(sandbox);
    await first.setCut(sandbox, true);
    await first.close();
    opened.length = 0;
    const second = await start({ stateDirectory: state, warm: 0 }, new Set([sandbox]));
    expect(await second.acquire(sandbox)).toEqual(at);
    expect(await connects(at, at.gatewayAddress, proxyPort)).toBe(false);
    await second.release(sandbox);
    await second.close();
    opened.length = 0;
    await proxy?.close();
    proxy = undefined;

    const third = await start({ stateDirectory: state, warm: 0 });
    const next = await third.acquire(id());
    expect(next.address).toBe(at.address);
    expect(await connects(next, next.gatewayAddress, proxyPort)).toBe(true);
  });

  test('I-14: the control listener knows a sandbox by its interface and address; the host and the neighbours are not it', async () => {
    const network = await start();
    const [one, two] = [id(), id()];
    const [a, b] = [await network.acquire(one), await network.acquire(two)];
    const seen: (AddressHolder & { peerAddress: string })[] = [];
    const control = await listen(network, (from, peerAddress) => seen.push({ ...from, peerAddress }));
    try {
      expect([await talks(a), await talks(b)]).toEqual([true, true]);
      expect(seen).toEqual([
        { id: one, interface: a.interface, peerAddress: a.address },
        { id: two, interface: b.interface, peerAddress: b.address },
      ]);
      // Root inside takes the neighbour's address: the rules know better.
      await inside(a, 'ip', 'addr', 'add', `${b.address}/32`, 'dev', 'eth0');
      expect(await connects(a, a.gatewayAddress, controlPort, b.address)).toBe(false);
      const own = connect(controlPort, a.gatewayAddress).on('error', () => undefined);
      await new Promise((resolve) => own.once('close', resolve));
      await network.release(one);
      expect(network.holderOf(a.address)).toBeUndefined();
      expect(seen).toHaveLength(2);
    } finally {
      await control.close();
    }
  });

  test('R-16: a network of the same pool under another name is refused with what to do', async () => {
    await start();
    const second = new SandboxNetwork({
      stateDirectory: state,
      instance: `${instance.slice(0, 7)}x`,
      pool,
      proxyPort,
      controlPort,
      logger: silentLogger,
      applyGateway: async () => undefined,
    });
    await expect(second.start(new Set())).rejects.toMatchObject({ code: 'invalid-config', hint: expect.stringContaining('--pool') });
  });
});

describe('R-17: addresses and interfaces come from a pool that a crash cannot leak', () => {
  test('R-17: the same id gets the same attachment, another id another one', async () => {
    const network = await start();
    const sandbox = id();
    const [first, other] = await Promise.all([network.acquire(sandbox), network.acquire(id())]);
    expect(await network.acquire(sandbox)).toEqual(first);
    expect(other.address).not.toBe(first.address);
  });

  test('R-17: release gives everything back, twice is once, and a closed network without sandboxes leaves nothing', async () => {
    const network = await start();
    const sandbox = id();
    const at = await network.acquire(sandbox);
    await network.applyPolicy(sandbox, parseAllowList(['example.org']));
    await network.release(sandbox);
    await network.release(sandbox);
    expect(await leftovers()).not.toContain(at.interface);
    expect(applied).toEqual([]);
    await network.close();
    opened.length = 0;
    expect(await leftovers()).toEqual([]);
    expect(await hasTable()).toBe(false);
    expect(await readdir(join(state, 'networks'))).toEqual([]);
  });

  test("R-17: what is reserved is nobody's until a sandbox takes it, and half of the addresses are kept for others", async () => {
    // Five addresses.
    const network = await start({ pool: '10.252.64.0/29' });
    const [first, second, third] = [await network.reserve(), await network.reserve(), await network.reserve()];
    if (first === undefined || second === undefined) throw new Error('nothing was reserved');
    expect(third).toBeDefined();
    expect(await network.reserve()).toBeUndefined();
    expect(network.holderOf(first.address)).toBeUndefined();
    const [sandbox, other, more] = [id(), id(), id()];
    expect(await network.acquire(sandbox, first)).toEqual(first);
    expect(network.holderOf(first.address)?.id).toBe(sandbox);
    // One that has a network keeps it, and what was reserved stays so.
    expect(await network.acquire(sandbox, second)).toEqual(first);
    // Taken, given back: it is nobody's any more.
    await network.unreserve(first);
    expect(network.holderOf(first.address)?.id).toBe(sandbox);
    expect(await leftovers()).toContain(second.interface);
    await network.unreserve(second);
    await network.unreserve(second);
    expect(await leftovers()).not.toContain(second.interface);
    expect((await network.acquire(other, second)).address).not.toBe(first.address);
    await network.acquire(more);
    for (const each of [sandbox, other, more]) await network.release(each);
    await network.close();
    opened.length = 0;
    // The third that was reserved too.
    expect(await leftovers()).toEqual([]);
  });

  test('R-17: an address is not given out again before the gateway has forgotten it', async () => {
    let fail = false;
    const network = await start({
      pool: '10.219.65.0/29',
      warm: 0,
      applyGateway: async () => (fail ? Promise.reject(new Error('gateway away')) : undefined),
    });
    const all = [id(), id(), id(), id(), id()];
    const addresses = new Set<string>();
    for (const one of all) addresses.add((await network.acquire(one)).address);
    expect(addresses.size).toBe(5);
    await expect(network.acquire(id())).rejects.toMatchObject({ code: 'no-room' });
    fail = true;
    await network.release(all[0] as SandboxId);
    await expect(network.acquire(id())).rejects.toMatchObject({ code: 'no-room' });
    fail = false;
    await network.applyPolicy(all[1] as SandboxId, parseAllowList([]));
    expect(addresses).toContain((await network.acquire(id())).address);
  });

  test('R-9, R-17: after kill -9 the next network keeps known sandboxes with their policies and sweeps the rest', async () => {
    state = await mkdtemp(join(tmpdir(), 'drover-network-'));
    const [kept, gone] = [id(), id()];
    const program = `
      import { SandboxNetwork } from ${JSON.stringify(new URL('./index.ts', import.meta.url).href)};
      import { silentLogger } from '@drover/foundation/log';
      import { parseAllowList } from '@drover/spec/policy';
      const network = new SandboxNetwork({ stateDirectory: ${JSON.stringify(state)}, instance: ${JSON.stringify(instance)}, pool: ${JSON.stringify(pool)},
        proxyPort: ${proxyPort}, controlPort: ${controlPort}, logger: silentLogger, warm: 2, applyGateway: async () => undefined });
      await network.start(new Set());
      const a = await network.acquire(${JSON.stringify(kept)});
      await network.applyPolicy(${JSON.stringify(kept)}, parseAllowList(['${web.origin}']));
      await network.acquire(${JSON.stringify(gone)});
      console.log(JSON.stringify(a));
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--conditions=development', '--input-type=module', '-e', program], {
      cwd: import.meta.dirname,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const before = JSON.parse(
      await new Promise<string>((resolve) => child.stdout.once('data', (d: Buffer) => resolve(String(d)))),
    ) as NetworkAttachment;
    child.kill('SIGKILL');
    await new Promise((resolve) => child.once('exit', resolve));

    const network = await start({ stateDirectory: state, warm: 0 }, new Set([kept]));
    expect(await leftovers()).toEqual(expect.arrayContaining([before.interface]));
    expect((await leftovers()).filter((n) => n.includes('-'))).toHaveLength(2);
    expect(applied).toEqual([{ sandboxId: kept, address: before.address, policy: parseAllowList([web.origin]) }]);
    expect(await network.acquire(kept)).toEqual(before);
    expect((await viaProxy(before, `http://${web.origin}/`)).out).toBe('hello /\n');
  });

  test('R-17: with the machine restarted under it, a known sandbox gets its place again', async () => {
    const network = await start({ warm: 0 });
    const sandbox = id();
    const before = await network.acquire(sandbox);
    await network.close();
    opened.length = 0;
    await proxy?.close();
    proxy = undefined;
    await run('nft', ['delete', 'table', 'inet', `drover-${instance}`]);
    for (const link of [before.interface, `d${instance}g`]) await run('ip', ['link', 'del', link]);
    await run('ip', ['netns', 'del', before.namespacePath.replace('/run/netns/', '')]);

    const after = await start({ stateDirectory: state, warm: 0 }, new Set([sandbox]));
    expect(await after.acquire(sandbox)).toEqual(before);
    await after.applyPolicy(sandbox, parseAllowList([web.origin]));
    expect((await viaProxy(before, `http://${web.origin}/`)).out).toBe('hello /\n');
  });

  test('R-9: a start with another pool is refused and leaves the way to running sandboxes; the next start restores what is missing', async () => {
    const routeTo = async (at: NetworkAttachment): Promise<string> => (await run('ip', ['route', 'get', at.address])).stdout;
    const stop = async (): Promise<void> => {
      for (const network of opened.splice(0)) await network.close();
      await proxy?.close();
      proxy = undefined;
    };
    const known = new Set([id(), id()]);
    const [first, second] = known;
    const network = await start({ warm: 0 });
    const at = await network.acquire(first as SandboxId);
    const other = await network.acquire(second as SandboxId);
    const servers = [await echoes(at, initPort), await echoes(other, initPort)];
    try {
      await stop();
      await expect(start({ stateDirectory: state, warm: 0, pool: '10.252.66.0/24' }, known)).rejects.toMatchObject({
        code: 'invalid-config',
        hint: expect.stringContaining(`--pool ${pool}`),
      });
      await stop();
      expect(await routeTo(at)).toContain(`dev ${at.interface}`);
      expect(await dialIn(at, initPort).answers()).toBe(true);

      // The routes go with the address; an interface that is down has none either.
      await run('ip', ['link', 'del', `d${instance}g`]);
      await run('ip', ['link', 'set', other.interface, 'down']);
      expect(await run('ip', ['route', 'show', at.address])).toMatchObject({ stdout: '' });
      await start({ stateDirectory: state, warm: 0 }, known);
      for (const sandbox of [at, other]) {
        expect(await routeTo(sandbox)).toContain(`dev ${sandbox.interface}`);
        expect(await dialIn(sandbox, initPort).answers()).toBe(true);
      }
    } finally {
      for (const server of servers) server.kill('SIGKILL');
    }
  });

  test('R-16: without its route, a sandbox is not looked for elsewhere', async () => {
    const network = await start({ warm: 0 });
    const at = await network.acquire(id());
    await run('ip', ['route', 'del', `${at.address}/32`]);
    // As the host's default route would: to a neighbour, which has no way to it.
    await run('ip', ['route', 'add', `${at.address}/32`, 'via', web.address]);
    try {
      const socket = connect(initPort, at.address);
      await expect(once(socket, 'connect')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    } finally {
      await run('ip', ['route', 'del', `${at.address}/32`]);
    }
  });

  test("R-17: an unreadable record is nobody's", async () => {
    const first = await start({ warm: 0 });
    const sandbox = id();
    await first.acquire(sandbox);
    await first.close();
    opened.length = 0;
    const file = join(state, 'networks', `${sandbox}.json`);
    await run('sh', ['-c', 'printf "{" > "$0"', file]);
    await start({ stateDirectory: state, warm: 0 }, new Set([sandbox]));
    expect((await leftovers()).filter((n) => n.includes('-'))).toEqual([]);
    await expect(readFile(file)).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

test('G-14: a policy that cannot be read is refused, and the one before stays in force', async () => {
  const network = await start();
  const sandbox = id();
  const at = await network.acquire(sandbox);
  await network.applyPolicy(sandbox, parseAllowList([web.origin]));
  const apply = async (...allow: string[]): Promise<void> => await network.applyPolicy(sandbox, parseSandboxPolicy({ allow }));
  await expect(apply('http://x/')).rejects.toMatchObject({ code: 'invalid-argument' });
  await expect(apply(...Array.from({ length: 2000 }, (_, i) => `h${i}.test`))).rejects.toMatchObject({ code: 'invalid-argument' });
  expect((await viaProxy(at, `http://${web.origin}/`)).out).toBe('hello /\n');
});

test('R-16: the host reaches a port inside, as it must reach init', async () => {
  const network = await start();
  const at = await network.acquire(id());
  const child = spawn('nsenter', [
    `--net=${at.namespacePath}`,
    process.execPath,
    '-e',
    'require("node:net").createServer((s) => s.end("init")).listen(7007, () => console.log("up"))',
  ]);
  try {
    await new Promise((resolve) => child.stdout.once('data', resolve));
    const said = await new Promise<string>((resolve, reject) =>
      connect(7007, at.address)
        .on('data', (d) => resolve(String(d)))
        .on('error', reject),
    );
    expect(said).toBe('init');
  } finally {
    child.kill('SIGKILL');
  }
});

test('R-9: in a network namespace that was joined without a /sys of its own, nothing stays either', async () => {
  const name = `drover-test-${process.pid}`;
  const script = `
    import { newSandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
    import { SandboxNetwork } from ${JSON.stringify(join(import.meta.dirname, 'sandbox-network.ts'))};
    const network = new SandboxNetwork({ stateDirectory: process.argv[1], instance: 'nsenter1', pool: ${JSON.stringify(pool)}, proxyPort: ${proxyPort}, controlPort: ${controlPort},
      logger: silentLogger, warm: 1, applyGateway: async () => {} });
    await network.start(new Set());
    const id = newSandboxId();
    await network.acquire(id);
    await network.release(id);
    await network.close();`;
  const directory = await mkdtemp(join(tmpdir(), 'drover-network-'));
  await run('ip', ['netns', 'add', name]);
  try {
    const node = [process.execPath, '--conditions=development', '--input-type=module', '-e', script, directory];
    await run('nsenter', [`--net=/run/netns/${name}`, ...node], { cwd: import.meta.dirname });
    const { stdout } = await run('ip', ['-n', name, '-brief', 'link']);
    expect(
      stdout
        .trim()
        .split('\n')
        .map((line) => line.split(/\s/)[0]),
    ).toEqual(['lo']);
  } finally {
    await run('ip', ['netns', 'del', name]);
    await rm(directory, { recursive: true, force: true });
  }
});
