import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import { connect, createServer as createTcpServer, type AddressInfo, type Server as TcpServer, type Socket } from 'node:net';
import { silentLogger } from '@drover/foundation/log';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { limits } from '../limits.ts';
import { parseAllowList } from '@drover/spec/policy';
import { PolicyTable } from '../policy/index.ts';
import type { Decision } from './decisions.ts';
import { alternateFamilies } from './dial.ts';
import { EgressProxy } from './proxy.ts';

/** The client's source address identifies the sandbox: all of 127/8 belongs to this host. */
const sandboxA = '127.0.0.2';
const sandboxB = '127.0.0.3';

/** The private address of the servers, unused on this machine. No rule opens loopback (G-16). */
const origin = `10.254.${(process.pid >> 8) & 255}.${(process.pid & 253) + 1}`;
beforeAll(() => execFileSync('ip', ['address', 'add', `${origin}/32`, 'dev', 'lo']));
afterAll(() => execFileSync('ip', ['address', 'del', `${origin}/32`, 'dev', 'lo']));

let table: PolicyTable;
let proxy: EgressProxy;
let port: number;
let web: Server;
let webPort: number;
let echo: TcpServer;
let echoPort: number;
let seen: { method: string; url: string; raw: string[]; body: string }[];
let names: Map<string, string[]>;
let lookups: string[];
/** What names below silent.test resolve to, once the test ends their lookups. */
let { promise: silence, resolve: endSilence } = Promise.withResolvers<readonly string[]>();
let decisions: Decision[];
const sockets: Socket[] = [];

beforeEach(async () => {
  seen = [];
  names = new Map([['web.test', [origin]]]);
  lookups = [];
  ({ promise: silence, resolve: endSilence } = Promise.withResolvers<readonly string[]>());
  decisions = [];
  web = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (d: string) => (body += d));
    request.on('end', () => {
      seen.push({ method: request.method ?? '', url: request.url ?? '', raw: request.rawHeaders, body });
      if (request.url === '/broken') {
        request.socket.destroy();
        return;
      }
      if (request.url === '/stream') {
        response.write('first');
        return;
      }
      response.writeHead(200, { 'x-answer': '42', connection: 'close, x-private', 'x-private': 'secret', 'keep-alive': 'timeout=9' });
      response.end(`${request.method} ${request.url}`);
    });
  }).listen(0, origin);
  echo = createTcpServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => undefined);
    socket.pipe(socket);
  }).listen(0, origin);
  await Promise.all([once(web, 'listening'), once(echo, 'listening')]);
  webPort = (web.address() as AddressInfo).port;
  echoPort = (echo.address() as AddressInfo).port;
  table = new PolicyTable();
  proxy = new EgressProxy({
    table,
    logger: silentLogger,
    onDecision: (d) => decisions.push(d),
    own: () => new Set(),
    resolve: async (name) => {
      lookups.push(name);
      if (name.endsWith('.silent.test')) return await silence;
      const found = names.get(name);
      if (found === undefined) throw new Error('ENOTFOUND');
      return found;
    },
  });
  ({ port } = await proxy.listen({ host: '127.0.0.1', port: 0 }));
});

afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  web.closeAllConnections();
  await Promise.all([proxy.close(), new Promise((r) => web.close(r)), new Promise((r) => echo.close(r))]);
});

let version = 0n;
function allow(a: readonly string[], b: readonly string[] = []): void {
  apply([
    { sandboxId: 'sb-a', address: sandboxA, allow: a },
    { sandboxId: 'sb-b', address: sandboxB, allow: b },
  ]);
}
function apply(entries: readonly { readonly sandboxId: string; readonly address: string; readonly allow: readonly string[] }[]): void {
  const policies = entries.map(({ allow: texts, ...rest }) => ({ ...rest, policy: parseAllowList(texts) }));
  table.apply({ version: ++version, base: undefined, policies, removed: [] });
}
/** Allows web.test, and the private address that it has in these tests. */
const allowWeb = () => allow([`web.test:${webPort}`, `${origin}:${webPort}`]);

async function dial(from = sandboxA): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port, localAddress: from, allowHalfOpen: true });
  socket.on('error', () => undefined);
  sockets.push(socket);
  await once(socket, 'connect');
  return socket;
}

async function until(socket: Socket, done: (text: string) => boolean): Promise<string> {
  let text = '';
  for await (const data of socket.iterator({ destroyOnReturn: false })) {
    text += String(data);
    if (done(text)) break;
  }
  return text;
}

/** Sends bytes, and returns the response up to the close. */
async function exchange(bytes: string, from = sandboxA): Promise<string> {
  const socket = await dial(from);
  socket.write(bytes);
  return await until(socket, () => false);
}

const get = (url: string, extra = '') => `GET ${url} HTTP/1.1\r\nHost: ${new URL(url).host}\r\nConnection: close\r\n${extra}\r\n`;
const status = (answer: string) => Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1]);
const body = (answer: string) => JSON.parse(answer.slice(answer.indexOf('\r\n\r\n') + 4)) as Record<string, unknown>;

async function tunnelTo(target: string, from = sandboxA): Promise<{ socket: Socket; answer: string }> {
  const socket = await dial(from);
  socket.write(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`);
  const answer = await until(socket, (t) => t.includes('\r\n\r\n'));
  return { socket, answer };
}

describe('HTTP in absolute-form', () => {
  test('an allowed request reaches the server, and its response the client', async () => {
    allowWeb();
    const answer = await exchange(get(`http://web.test:${webPort}/a?b=c`));
    expect(status(answer)).toBe(200);
    expect(answer).toContain('GET /a?b=c');
    expect(decisions).toMatchObject([
      { sandbox: 'sb-a', host: 'web.test', port: webPort, allowed: true, rule: `web.test:${webPort}`, version },
    ]);
  });

  test('G-17: hop-by-hop fields are forwarded in neither direction; Host is the host that was checked', async () => {
    allowWeb();
    const answer = await exchange(
      `GET http://WEB.test:${webPort}/ HTTP/1.1\r\nHost: web.test:${webPort}\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\nUpgrade: h2c\r\nX-End: 2\r\n\r\n`,
    );
    const sent = seen[0]?.raw.map((v) => v.toLowerCase()) ?? [];
    for (const name of ['x-hop', 'proxy-authorization', 'te', 'upgrade']) expect(sent).not.toContain(name);
    expect(sent).toEqual(expect.arrayContaining(['x-end', '2', 'host', `web.test:${webPort}`]));
    expect(answer.toLowerCase()).toContain('x-answer: 42');
    expect(answer.toLowerCase()).not.toMatch(/x-private|timeout=9/);
  });

  test('a body with a length, and a chunked one, arrive whole', async () => {
    allowWeb();
    const url = `http://web.test:${webPort}/post`;
    const head = `POST ${url} HTTP/1.1\r\nHost: web.test:${webPort}\r\nConnection: close\r\n`;
    await exchange(`${head}Content-Length: 5\r\n\r\nhello`);
    await exchange(`${head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n`);
    expect(seen.map((s) => s.body)).toEqual(['hello', 'abcde']);
  });

  test('a streamed response arrives before its end', async () => {
    allowWeb();
    const socket = await dial();
    socket.write(get(`http://web.test:${webPort}/stream`));
    expect(await until(socket, (t) => t.includes('first'))).toContain('first');
  });

  test('a server that ends the connection is a 502 with that reason', async () => {
    allowWeb();
    const answer = await exchange(get(`http://web.test:${webPort}/broken`));
    expect(status(answer)).toBe(502);
    expect(body(answer)).toMatchObject({ error: 'upstream-failed', host: 'web.test' });
  });

  test('G-18: a refusal is a 403 with a body for programs and people', async () => {
    allow(['other.test']);
    const answer = await exchange(get(`http://web.test:${webPort}/`));
    expect(status(answer)).toBe(403);
    expect(body(answer)).toMatchObject({
      error: 'egress-denied',
      sandbox: 'sb-a',
      host: 'web.test',
      port: webPort,
      method: 'GET',
      rule: 'no rule',
    });
    expect(body(answer)['hint']).toContain(`--allow web.test:${webPort}`);
    expect(lookups).toEqual([]);
    expect(decisions).toMatchObject([{ allowed: false, rule: 'no rule' }]);
  });
});

describe('G-17: a request that two servers could read differently is refused, and no byte of it reaches the server', () => {
  const line = () => `POST http://web.test:${webPort}/ HTTP/1.1\r\nHost: web.test:${webPort}\r\n`;
  test.each([
    ['both framings', () => `${line()}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`],
    ['both framings, the other way round', () => `${line()}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n`],
    ['two lengths', () => `${line()}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd`],
    ['a list of lengths', () => `${line()}Content-Length: 4, 4\r\n\r\nabcd`],
    ['a signed length', () => `${line()}Content-Length: +4\r\n\r\nabcd`],
    ['another encoding', () => `${line()}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n`],
    ['a misspelt encoding', () => `${line()}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n`],
    ['a space before the colon', () => `${line()}Content-Length : 4\r\n\r\nabcd`],
    ['a folded field', () => `${line()}X: a\r\n b\r\nContent-Length: 0\r\n\r\n`],
    ['a bare CR in a field', () => `${line()}X: a\rb\r\n\r\n`],
    ['two Hosts', () => `${line()}Host: evil.test\r\nContent-Length: 0\r\n\r\n`],
    ['another Host (G-16)', () => `GET http://web.test:${webPort}/ HTTP/1.1\r\nHost: evil.test\r\n\r\n`],
    ['no Host', () => `GET http://web.test:${webPort}/ HTTP/1.1\r\n\r\n`],
    ['a user in the URL', () => `GET http://web.test@${origin}:${webPort}/ HTTP/1.1\r\nHost: ${origin}:${webPort}\r\n\r\n`],
    ['a backslash', () => `GET http://web.test:${webPort}\\@evil.test/ HTTP/1.1\r\nHost: web.test:${webPort}\r\n\r\n`],
    ['another scheme', () => `GET ftp://web.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n`],
    ['origin-form', () => `GET / HTTP/1.1\r\nHost: web.test:${webPort}\r\n\r\n`],
    ['CONNECT with a body', () => `CONNECT web.test:${webPort} HTTP/1.1\r\nHost: web.test:${webPort}\r\nContent-Length: 4\r\n\r\nabcd`],
    ['CONNECT without a port', () => 'CONNECT web.test HTTP/1.1\r\nHost: web.test\r\n\r\n'],
    ['CONNECT to a path', () => `CONNECT http://web.test:${webPort}/ HTTP/1.1\r\nHost: web.test\r\n\r\n`],
  ])('%s', async (_, bytes) => {
    allowWeb();
    const answer = await exchange(bytes());
    expect(status(answer)).toBe(400);
    expect(seen).toEqual([]);
  });

  test('a head that is too large, or has too many fields, is a 431', async () => {
    allowWeb();
    expect(status(await exchange(get(`http://web.test:${webPort}/`, `X: ${'a'.repeat(limits.headBytes)}\r\n`)))).toBe(431);
    expect(status(await exchange(get(`http://web.test:${webPort}/`, 'a: b\r\n'.repeat(limits.headerLines))))).toBe(431);
    expect(seen).toEqual([]);
  });
});

describe('CONNECT', () => {
  const allowEcho = () => allow([`echo.test:${echoPort}`, `${origin}:${echoPort}`]);
  beforeEach(() => void names.set('echo.test', [origin]));

  test('carries bytes both ways, also those sent along with the request, and half-closes', async () => {
    allowEcho();
    const socket = await dial();
    socket.write(`CONNECT echo.test:${echoPort} HTTP/1.1\r\nHost: echo.test:${echoPort}\r\n\r\nearly`);
    expect(await until(socket, (t) => t.includes('early'))).toMatch(/^HTTP\/1\.1 200 .*early$/s);
    socket.end('late');
    expect(await until(socket, () => false)).toBe('late');
  });

  test('holds a fast sender back when the other side does not read', async () => {
    let upstream: Socket | undefined;
    const slow = createTcpServer((s) => void (upstream = s.pause())).listen(0, origin);
    await once(slow, 'listening');
    const slowPort = (slow.address() as AddressInfo).port;
    allow([`${origin}:${slowPort}`]);
    const { socket } = await tunnelTo(`${origin}:${slowPort}`);
    const chunk = Buffer.alloc(1 << 20);
    let accepted = 0;
    while (accepted < 64 && socket.write(chunk)) accepted++;
    while (accepted < 64) {
      const drained = await Promise.race([once(socket, 'drain').then(() => true), new Promise<false>((r) => setTimeout(r, 300, false))]);
      if (!drained) break;
      accepted++;
      socket.write(chunk);
    }
    // Kernel buffers take some; the proxy itself takes no more than its pipes' high-water marks.
    expect(accepted).toBeLessThan(64);
    upstream?.destroy();
    slow.close();
  });

  test('G-18: is refused to another host, another port, and to another sandbox', async () => {
    allowEcho();
    for (const [target, from] of [
      [`other.test:${echoPort}`, sandboxA],
      ['echo.test:22', sandboxA],
      [`echo.test:${echoPort}`, sandboxB],
    ] as const) {
      const answer = await exchange(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`, from);
      expect(status(answer), target).toBe(403);
      expect(body(answer)).toMatchObject({
        error: 'egress-denied',
        method: 'CONNECT',
        rule: 'no rule',
        sandbox: from === sandboxA ? 'sb-a' : 'sb-b',
      });
    }
  });

  test('an address that is not in the table is refused everything', async () => {
    allowEcho();
    expect(status(await exchange(`CONNECT echo.test:${echoPort} HTTP/1.1\r\nHost: x\r\n\r\n`, '127.0.0.9'))).toBe(403);
  });

  test('G-14: a new table closes the tunnels that it forbids, and leaves the others', async () => {
    allow([`${origin}:${echoPort}`, `${origin}:${webPort}`], [`${origin}:${echoPort}`]);
    const [forbidden, kept, neighbour] = await Promise.all([
      tunnelTo(`${origin}:${echoPort}`),
      tunnelTo(`${origin}:${webPort}`),
      tunnelTo(`${origin}:${echoPort}`, sandboxB),
    ]);
    const closed = once(forbidden.socket, 'close');
    forbidden.socket.resume();
    allow([`${origin}:${webPort}`], [`${origin}:${echoPort}`]);
    forbidden.socket.end();
    await closed;
    neighbour.socket.write('still here');
    expect(await until(neighbour.socket, (t) => t.includes('here'))).toBe('still here');
    kept.socket.write('GET /kept HTTP/1.1\r\nHost: x\r\n\r\n');
    expect(await until(kept.socket, (t) => t.includes('/kept'))).toContain('200 OK');
  });

  test('G-14: connections of an address end when it passes to another sandbox', async () => {
    allowEcho();
    const { socket } = await tunnelTo(`echo.test:${echoPort}`);
    socket.resume();
    const ended = once(socket, 'end');
    apply([{ sandboxId: 'sb-new', address: sandboxA, allow: [`echo.test:${echoPort}`, `${origin}:${echoPort}`] }]);
    await ended;
  });
});

test('G-18: the status line of a refused CONNECT contains the refusal and the hint, for clients that show nothing else', async () => {
  allow([]);
  const answer = await exchange('CONNECT web.test:8443 HTTP/1.1\r\nHost: web.test:8443\r\n\r\n');
  expect(answer.split('\r\n')[0]).toBe(
    'HTTP/1.1 403 this sandbox may not reach web.test:8443 (no rule); ask the person who runs this sandbox to allow it: --allow web.test:8443',
  );
});

describe('G-17: upgrades', () => {
  const handshake = (path: string, protocol = 'websocket'): string =>
    `GET http://web.test:${webPort}${path} HTTP/1.1\r\nHost: web.test:${webPort}\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: ${protocol}\r\n\r\n`;

  beforeEach(() => {
    allowWeb();
    web.on('upgrade', (request, socket) => {
      socket.on('error', () => undefined);
      if (request.url === '/no') {
        socket.end('HTTP/1.1 426 Upgrade Required\r\nContent-Length: 4\r\n\r\nnope');
        return;
      }
      seen.push({ method: request.method ?? '', url: request.url ?? '', raw: request.rawHeaders, body: '' });
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Answer: 42\r\n\r\nhello ');
      socket.pipe(socket);
    });
  });

  test('a WebSocket in absolute form is carried both ways, with bytes that follow the heads', async () => {
    const socket = await dial();
    socket.write(`${handshake('/chat')}early `);
    const text = await until(socket, (t) => t.includes('early '));
    expect(text).toMatch(/^HTTP\/1\.1 101 [^]*x-answer: 42[^]*upgrade: websocket[^]*\r\n\r\nhello early $/i);
    socket.write('later');
    expect(await until(socket, (t) => t.includes('later'))).toBe('later');
    expect(seen[0]?.raw.join(' ')).toContain('Upgrade websocket');
    expect(seen[0]?.raw.join(' ')).not.toContain('X-Hop');
    const ended = once(socket.resume(), 'end');
    allow([]);
    await ended;
  });

  test('a server that does not switch answers in HTTP', async () => {
    const answer = await exchange(handshake('/no'));
    expect(status(answer)).toBe(426);
    expect(answer).toMatch(/nope/);
  });

  test.each(['h2c', 'H2C', 'websocket, h2c'])('HTTP/2 in clear text is not offered to the server: %s', async (protocols) => {
    const answer = await exchange(handshake('/h2', protocols).replace('Upgrade, X-Hop', 'Upgrade, HTTP2-Settings, close'));
    expect(status(answer)).toBe(200);
    expect(seen[0]?.raw.join(' ').toLowerCase()).not.toContain('upgrade');
  });

  test('a refused one gets its reason', async () => {
    allow([]);
    expect(body(await exchange(handshake('/chat')))).toMatchObject({ error: 'egress-denied', rule: 'no rule' });
  });
});

describe('G-16: names are resolved once, and the checked address is dialled', () => {
  test('a name that points to a forbidden address is refused, whichever it is', async () => {
    names.set('rebind.test', ['169.254.169.254', '::1', '10.0.0.1']);
    allow(['rebind.test', 'rebind.test:8080']);
    const answer = await exchange(get('http://rebind.test/'));
    expect(status(answer)).toBe(403);
    expect(body(answer)).toMatchObject({ rule: 'forbidden address (metadata)' });
  });

  test('a name that changes its mind is asked once a request', async () => {
    allowWeb();
    await exchange(get(`http://web.test:${webPort}/`));
    expect(lookups).toEqual(['web.test']);
  });

  test('RFC 8305: each silent address costs a fraction of a second, however many precede the one that responds', async () => {
    // Neighbours that are known and do not exist: packets to them leave, and no response comes.
    const [device, prefix] = [`gwt${process.pid}`, `fd5d:${process.pid.toString(16)}:`];
    const silent = Array.from({ length: 6 }, (_, i) => `${prefix}:${i + 16}`);
    const ip = (...args: string[]) => execFileSync('ip', args);
    ip('link', 'add', device, 'type', 'veth', 'peer', 'name', `${device}p`);
    try {
      for (const end of [device, `${device}p`]) ip('link', 'set', end, 'up');
      ip('-6', 'address', 'add', `${prefix}:1/64`, 'dev', device, 'nodad');
      for (const address of silent) ip('-6', 'neighbour', 'add', address, 'lladdr', '02:00:00:00:00:99', 'dev', device);
      names.set('half.test', [...silent, origin]);
      allow([`half.test:${webPort}`, `${origin}:${webPort}`, `[${prefix}:/64]:${webPort}`]);
      const begun = performance.now();
      expect(status(await exchange(get(`http://half.test:${webPort}/`)))).toBe(200);
      // Far below one connect timeout, on any machine.
      expect(performance.now() - begun).toBeLessThan(limits.dialTimeoutMs / 2);
    } finally {
      execFileSync('ip', ['link', 'delete', device]);
    }
  });

  test.each([
    [
      ['6a', '6b', '6c', '4a'],
      ['6a', '4a', '6b', '6c'],
    ],
    [
      ['4a', '4b', '6a'],
      ['4a', '6a', '4b'],
    ],
    [
      ['4a', '6a', '6b', '6c'],
      ['4a', '6a', '6b', '6c'],
    ],
    [['4a'], ['4a']],
    [[], []],
  ])('RFC 8305: the families of %j alternate', (given, expected) => {
    const address = (name: string): string => (name.startsWith('6') ? `2001:db8::${name.slice(1)}` : `192.0.2.${name.charCodeAt(1)}`);
    expect(alternateFamilies(given.map(address))).toEqual(expected.map(address));
  });

  test('of several addresses only those that may be reached are dialled', async () => {
    names.set('mixed.test', ['10.255.255.1', origin]);
    allow([`mixed.test:${webPort}`, `${origin}:${webPort}`]);
    expect(status(await exchange(get(`http://mixed.test:${webPort}/`)))).toBe(200);
  });

  test('a name without an address is a 502 with that reason, and so is an absent server', async () => {
    allow(['nowhere.test', `${origin}:9`]);
    expect(body(await exchange(get('http://nowhere.test/')))).toMatchObject({ error: 'name-not-resolved' });
    expect(body(await exchange(get(`http://${origin}:9/`)))).toMatchObject({ error: 'upstream-unreachable' });
  });

  test('a policy that changes while a name is resolved is in force for it', async () => {
    names.set('slow.test', [origin]);
    allow([`slow.test:${webPort}`, `${origin}:${webPort}`]);
    const socket = await dial();
    const answer = until(socket, () => false);
    // The resolver runs when the request has been judged; the table changes before it has answered.
    const found = names.get.bind(names);
    names.get = (name) => {
      allow([]);
      return found(name);
    };
    socket.write(get(`http://slow.test:${webPort}/`));
    await answer;
    expect(seen).toEqual([]);
  });
});

test('one sandbox may have so many connections, and the others are not touched by it', async () => {
  allow([], []);
  await Promise.all(Array.from({ length: limits.connectionsPerSandbox }, () => dial()));
  const extra = await dial();
  // Closed without an answer: its end, or a reset.
  await new Promise((resolve) => extra.resume().once('end', resolve).once('close', resolve));
  expect(status(await exchange(get('http://web.test/'), sandboxB))).toBe(403);
});

test('the concurrent lookups of one sandbox are bounded, abandoned ones included; a name in resolution is not looked up again', async () => {
  allow(['*.silent.test', 'web.test'], ['web.test']);
  for (let i = 0; i < limits.lookupsPerSandbox; i++) (await dial()).write(get(`http://n${i}.silent.test/`));
  (await dial()).write(get('http://n0.silent.test/'));
  await vi.waitFor(() => expect(lookups).toHaveLength(limits.lookupsPerSandbox));
  // Its clients leave, its lookups go on.
  for (const socket of sockets.splice(0)) socket.destroy();
  const refused = await exchange(get('http://web.test/'));
  expect([status(refused), body(refused)]).toMatchObject([503, { error: 'too-busy' }]);
  // web.test has no server on port 80; only the resolution of its name matters.
  expect(status(await exchange(get('http://web.test/'), sandboxB))).not.toBe(503);
  expect(lookups.at(-1)).toBe('web.test');

  endSilence(['10.0.0.1']);
  await vi.waitFor(async () => expect(status(await exchange(get('http://web.test/')))).not.toBe(503));
});
