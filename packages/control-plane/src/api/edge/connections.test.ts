import { once } from 'node:events';
import { connect as connectHttp2 } from 'node:http2';
import { connect as connectTcp, createServer, type AddressInfo, type Socket } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { FakeClock } from '@drover/foundation';
import { fields, flag, frame, frameType, preface } from '@drover/protocol/testing';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { apiHandshakeTimeoutMs, apiIdleMs, apiPingMs, apiPingTimeoutMs, apiRequestMs } from '../../limits.ts';
import { startTestApi, type TestApi } from '../testing/server.ts';

const clock = new FakeClock(Date.now());
let api: TestApi;
let port: number;

beforeAll(async () => {
  api = await startTestApi({ clock });
  port = Number(new URL(api.url).port);
});
afterAll(async () => await api[Symbol.asyncDispose]());

const createSandbox = '/drover.api.v1.SandboxService/CreateSandbox';

async function tls(...alpn: string[]): Promise<TLSSocket> {
  const socket = connectTls({ port, host: '127.0.0.1', ca: api.ca.caPem, ALPNProtocols: alpn });
  socket.on('error', () => undefined);
  await once(socket, 'secureConnect');
  return socket.resume();
}

/** Sends `data` each second until `ms` have passed; the connection stands until the last of them, and is closed with it. */
async function isCutAt(socket: Socket, ms: number, data = ''): Promise<void> {
  const closed = once(socket, 'close');
  for (let passed = 0; passed + 2_000 < ms; passed += 1_000) {
    if (data !== '') socket.write(data);
    await clock.advance(1_000);
  }
  expect(socket.closed).toBe(false);
  expect(await api.client.sandboxes.list()).toEqual([]);
  await clock.advance(2_000);
  await closed;
}

it.each(['', 'x'])('cuts a connection whose TLS handshake has not ended at the limit, whatever it sends: %j', async (data) => {
  const socket = connectTcp(port, '127.0.0.1').on('error', () => undefined);
  await once(socket.resume(), 'connect');
  // The beginning of a ClientHello of 255 bytes.
  if (data !== '') socket.write(Buffer.from('16030300ff01', 'hex'));
  await expect.poll(() => clock.sleeping).toBeGreaterThan(0);
  await isCutAt(socket, apiHandshakeTimeoutMs, data);
});

it.each([
  ['nothing over HTTP/2', ['h2'], ''],
  ['nothing over HTTP/1.1', ['http/1.1'], ''],
  ['nothing without a protocol', [], ''],
  ['header lines one by one', ['http/1.1'], 'A: b\r\n'],
])('cuts a connection without a call at the limit: %s', async (_, alpn, data) => {
  const socket = await tls(...alpn);
  if (data !== '') socket.write('GET / HTTP/1.1\r\n');
  await isCutAt(socket, apiIdleMs, data);
});

it('cuts an HTTP/2 connection without a call at the limit, though it sends pings', async () => {
  const session = connectHttp2(api.url, { ca: api.ca.caPem });
  session.on('error', () => undefined);
  await once(session, 'connect');
  const closed = once(session, 'close');
  for (let passed = 0; passed + 2_000 < apiIdleMs; passed += 1_000) {
    session.ping(() => undefined);
    await clock.advance(1_000);
  }
  expect(session.closed).toBe(false);
  await clock.advance(2_000);
  await closed;
});

it('resets a request that comes in drops, at the limit', async () => {
  const socket = await tls('http/1.1');
  socket.write(`POST ${createSandbox} HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{`);
  await isCutAt(socket, apiRequestMs, ' ');
});

/** Moves time on, and lets this client answer each ping: both ends have read all that was sent before the second call. */
async function advanceWithPings(ms: number): Promise<void> {
  for (let passed = 0; passed < ms; passed += apiPingTimeoutMs / 2) {
    await clock.advance(apiPingTimeoutMs / 2);
    for (let call = 0; call < 2; call++) await api.client.sandboxes.list();
  }
}

it('leaves a call alone for as long as it lasts', async () => {
  const events = api.client.events.watch({ fromStart: true })[Symbol.asyncIterator]();
  const next = events.next();
  await advanceWithPings(apiIdleMs * 3);
  await api.addHost('north');
  expect((await next).done).toBe(false);
  await events.return?.(undefined);
});

/** The request of a WatchEvents that goes on, in the frame of a Connect stream. */
function watchRequest(): Buffer {
  const request = Buffer.from('{"fromStart":true,"follow":true}');
  return Buffer.concat([Buffer.from([0, 0, 0, 0, request.length]), request]);
}

it('ends the calls of a client that vanished without a reset', async () => {
  let server: Socket | undefined;
  let client: Socket | undefined;
  const relay = createServer((socket) => {
    client = socket;
    server = connectTcp(port, '127.0.0.1');
    for (const [from, to] of [
      [socket, server],
      [server, socket],
    ] as const) {
      from.on('error', () => undefined);
      from.on('data', (data) => to.write(data));
    }
  });
  await once(relay.listen(0, '127.0.0.1'), 'listening');
  const session = connectHttp2(`https://127.0.0.1:${(relay.address() as AddressInfo).port}`, { ca: api.ca.caPem });
  session.on('error', () => undefined);
  const call = session.request({
    ':method': 'POST',
    ':path': '/drover.api.v1.EventService/WatchEvents',
    authorization: `Bearer ${api.token}`,
    'content-type': 'application/connect+json',
  });
  call.on('error', () => undefined);
  call.end(watchRequest());
  await once(call, 'response');
  client?.pause();
  server?.pause();
  await clock.advance(apiPingMs + apiPingTimeoutMs);
  server?.removeAllListeners('data').resume();
  if (server !== undefined) await once(server, 'end');
  client?.destroy();
  server?.destroy();
  session.destroy();
  relay.close();
});

it('leaves a client alone that sends without a pause, though its answer to a ping is not yet among it', async () => {
  const socket = await tls('h2');
  const headers = fields(
    [':method', 'POST'],
    [':scheme', 'https'],
    [':authority', 'api'],
    [':path', '/drover.api.v1.EventService/WatchEvents'],
    ['authorization', `Bearer ${api.token}`],
    ['content-type', 'application/connect+json'],
  );
  socket.write(Buffer.concat([preface, frame(frameType.settings, 0, 0), frame(frameType.headers, flag.endHeaders, 1, headers)]));
  socket.write(frame(frameType.data, flag.endStream, 1, watchRequest()));
  const closed = once(socket, 'close');
  for (let passed = 0; passed < apiPingMs * 4; passed += apiPingTimeoutMs / 3) {
    socket.write(frame(frameType.windowUpdate, 0, 0, Buffer.from([0, 0, 0, 1])));
    // Both ends have read all that was sent before the second call.
    for (let call = 0; call < 2; call++) await api.client.sandboxes.list();
    await clock.advance(apiPingTimeoutMs / 3);
  }
  expect(socket.closed).toBe(false);
  await clock.advance(apiPingMs + apiPingTimeoutMs * 2);
  await closed;
});
