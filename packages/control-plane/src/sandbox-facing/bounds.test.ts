import { once } from 'node:events';
import { duplexPair, type Duplex } from 'node:stream';
import { create } from '@bufbuild/protobuf';
import { FakeClock, newSandboxId } from '@drover/foundation';
import { control, link } from '@drover/protocol';
import { sandboxConnectionsPerHost } from '@drover/spec';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { connectionsPerSandbox, sandboxConnections, sandboxRequestBytes } from '../limits.ts';
import { accessTokenOf, connectCall, drain, grpcCall, http1, http2, http2Request, registerBytes, registerJson } from './testing/calls.ts';
import { World, type Box } from './testing/world.ts';

let clock: FakeClock;
let world: World;
let box: Box;

beforeAll(async () => {
  clock = new FakeClock(Date.now());
  world = await World.open({ clock });
  box = await world.box(await world.host());
});
afterAll(async () => await world[Symbol.asyncDispose]());

const logged = (what: string): boolean => world.log.some((line) => line['what'] === what);

describe('a connection of a sandbox', () => {
  it('is cut when its handshake takes too long', async () => {
    const socket = await world.socket(box.origin);
    await clock.advance(9_900);
    expect(world.listener.connections).toBe(1);
    const closed = once(socket.resume(), 'close');
    await clock.advance(200);
    await closed;
    expect(world.listener.connections).toBe(0);
    expect(logged('the TLS handshake')).toBe(true);
  });

  it('is cut after a long time without a call', async () => {
    const session = http2(await world.as(box, 'h2'));
    await clock.advance(50_000);
    expect(accessTokenOf(await connectCall(session, 'register', registerBytes(box), box.token))).not.toBe('');
    await clock.advance(59_000);
    expect(session.closed).toBe(false);
    const closed = once(session, 'close');
    await clock.advance(2_000);
    await closed;
    expect(logged('the wait for a call')).toBe(true);
    await expect.poll(() => world.listener.connections).toBe(0);
  });

  it('is cut when a call takes too long, even if it sends data', async () => {
    const socket = await world.as(box);
    const heard = drain(socket);
    socket.write('POST /drover.control.v1.ControlService/Register HTTP/1.1\r\nHost: control\r\nContent-Type: application/json\r\n');
    socket.write(`Authorization: Bearer ${box.token}\r\nContent-Length: 100\r\n\r\n{`);
    // The headers begin the call; the body arrives slowly.
    await expect.poll(() => world.listener.calls).toBe(1);
    for (let dropped = 0; dropped < 29; dropped++) {
      socket.write(' ');
      await clock.advance(1_000);
    }
    expect(socket.closed).toBe(false);
    await clock.advance(2_000);
    expect(await heard).toBe('');
    expect(logged('a call')).toBe(true);
  });

  it('is closed immediately beyond the limit of its sandbox, which leaves other sandboxes their own', async () => {
    const sockets = [];
    for (let count = 0; count < connectionsPerSandbox; count++) sockets.push(await world.as(box));
    await expect(world.as(box)).rejects.toMatchObject({ code: 'ECONNRESET' });
    const other = await world.box(await world.host());
    sockets.push(await world.as(other));
    // The limit counts by host and sandbox, so another host's claims do not use it up.
    sockets.push(await world.as({ ...box, origin: { ...box.origin, hostId: other.origin.hostId } }));
    for (const socket of sockets) socket.destroy();
    await expect.poll(() => world.listener.connections).toBe(0);
    (await world.as(box)).destroy();
    await expect.poll(() => world.listener.connections).toBe(0);
  });

  it('is closed immediately beyond the limit of its host, for any sandbox; other hosts are not affected', async () => {
    const open: Duplex[] = [];
    const accept = (sandboxId: string): void => {
      const [, far] = duplexPair();
      world.listener.accept(box.origin.hostId, create(link.SandboxInboundSchema, { sandboxId }), far);
      open.push(far);
    };
    for (let count = 0; count < sandboxConnectionsPerHost; count++) accept(newSandboxId());
    expect(world.listener.connections).toBe(sandboxConnectionsPerHost);
    await expect(world.as(box)).rejects.toMatchObject({ code: 'ECONNRESET' });
    (await world.as(await world.box(await world.host()))).destroy();
    for (const stream of open) stream.destroy();
    await expect.poll(() => world.listener.connections).toBe(0);
    (await world.as(box)).destroy();
    await expect.poll(() => world.listener.connections).toBe(0);
  });

  it('is closed immediately beyond the limit of all connections', async () => {
    const open = [];
    for (let count = 0; count < sandboxConnections; count++) {
      const [, far] = duplexPair();
      const hostId = `${box.origin.hostId}-${Math.floor(count / connectionsPerSandbox)}` as typeof box.origin.hostId;
      world.listener.accept(hostId, create(link.SandboxInboundSchema, { sandboxId: box.id }), far);
      open.push(far);
    }
    expect(world.listener.connections).toBe(sandboxConnections);
    await expect(world.as(box)).rejects.toMatchObject({ code: 'ECONNRESET' });
    for (const stream of open) stream.destroy();
    await expect.poll(() => world.listener.connections).toBe(0);
  });
});

describe('a request of a sandbox', () => {
  it('is refused when it is too long, in any protocol', async () => {
    const name = 'x'.repeat(sandboxRequestBytes);
    const long = { project: '', name };
    const session = http2(await world.as(box, 'h2'));
    expect((await connectCall(session, 'register', registerBytes(long), box.token)).body.toString()).toContain('resource_exhausted');
    expect((await grpcCall(session, 'register', registerBytes(long), box.token)).trailers).toEqual(
      expect.arrayContaining(['grpc-status', '8']),
    );
    session.destroy();
    const answer = await http1(await world.as(box), 'register', { token: box.token, body: registerJson(long) });
    expect(answer.body).toContain('resource_exhausted');
  });

  it('with too long headers does not reach the application', async () => {
    const padding = `X-Padding: ${'x'.repeat(20_000)}`;
    const answer = await http1(await world.as(box), 'register', { token: box.token, body: registerJson(box), headers: [padding] });
    expect(answer.status).toBe(431);
    const session = http2(await world.as(box, 'h2'));
    // HTTP/2 announces the limit before the first request; until the client reads it, 64 KiB apply.
    await once(session, 'remoteSettings');
    const headers = { ':path': '/drover.control.v1.ControlService/Register', 'content-type': 'application/proto', 'x-padding': padding };
    expect(await http2Request(session, headers, new Uint8Array())).toMatchObject({ headers: [], resetCode: 11 });
    session.destroy();
  });

  it('that is never finished leaves nothing behind, and does not affect others', async () => {
    const complaints = vi.spyOn(console, 'error');
    const lines = 'Host: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n';
    const path = `/${control.ControlService.typeName}/Register`;
    for (const part of ['', 'POST /dro', `POST ${path} HTTP/1.1\r\n${lines}`, `POST ${path} HTTP/1.1\r\n${lines}\r\n{"na`]) {
      const socket = await world.as(box);
      socket.write(part);
      await clock.advance(10);
      socket.destroy();
    }
    for (const end of [false, true]) {
      const session = http2(await world.as(box, 'h2'));
      const stream = session.request({ ':method': 'POST', ':path': path, 'content-type': 'application/proto' });
      stream.on('error', () => undefined);
      stream.write(Buffer.from([10]));
      // With an end it becomes a call that waits for its refusal.
      if (end) stream.end(Buffer.from([0]));
      await expect.poll(() => world.listener.calls).toBe(1);
      if (end) await expect.poll(() => world.refusals(box.origin)).not.toEqual([]);
      session.destroy();
    }
    await expect.poll(() => [world.listener.connections, world.listener.calls]).toEqual([0, 0]);
    expect(complaints).not.toHaveBeenCalled();
    complaints.mockRestore();
  });

  it('that is malformed ends only its call', async () => {
    const raw = async (text: string): Promise<string> => {
      const socket = await world.as(box);
      const heard = drain(socket);
      socket.write(text);
      return await heard;
    };
    const end = 'Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}';
    const path = `/${control.ControlService.typeName}/Register`;
    expect(await raw(`POST /nowhere HTTP/1.1\r\nHost: a\r\n${end}`)).toMatch(/^HTTP\/1\.1 404 /);
    expect(await raw(`GET ${path} HTTP/1.1\r\nHost: a\r\n${end}`)).toMatch(/^HTTP\/1\.1 405 /);
    // These yield no valid URL.
    expect(await raw(`POST ${path} HTTP/1.0\r\n${end}`)).toMatch(/^HTTP\/1\.1 400 /);
    expect(await raw(`POST ${path} HTTP/1.1\r\nHost: [\r\n${end}`)).toMatch(/^HTTP\/1\.1 400 /);
    expect(await raw(`POST ${path} HTTP/1.1\r\nHost: a:b:c\r\n${end}`)).toMatch(/^HTTP\/1\.1 400 /);
    expect(await raw('nonsense\r\n\r\n')).toMatch(/^(HTTP\/1\.1 400 |$)/);

    const session = http2(await world.as(box, 'h2'));
    const headers = { ':path': path, ':authority': 'a:b:c', 'content-type': 'application/proto' };
    expect((await http2Request(session, headers, new Uint8Array())).headers.slice(0, 2)).toEqual([':status', '400']);
    // gRPC-Web is not supported.
    const web = { ':path': path, 'content-type': 'application/grpc-web+proto' };
    expect((await http2Request(session, web, new Uint8Array(5))).headers.slice(0, 2)).toEqual([':status', '415']);
    expect(accessTokenOf(await connectCall(session, 'register', registerBytes(box), box.token))).not.toBe('');
    session.destroy();
  });
});

describe('a control plane that stops', () => {
  it('closes idle connections immediately, waits for a call to end, and accepts no more connections', async () => {
    const ending = await World.open();
    await using _ = ending;
    const mine = await ending.box(await ending.host());
    const idle = await ending.as(mine);
    const busy = await ending.as(mine);
    // Refused, so the response is delayed.
    const answer = http1(busy, 'whoAmI', { token: mine.token });
    await expect.poll(() => ending.refusals(mine.origin)).toHaveLength(1);
    const idleClosed = once(idle.resume(), 'close');
    const closed = ending.listener.close();
    await idleClosed;
    await expect(ending.as(mine)).rejects.toMatchObject({ code: 'ECONNRESET' });
    expect((await answer).status).toBe(403);
    await closed;
    expect(ending.listener.connections).toBe(0);
  });

  it('cuts a call that does not end', async () => {
    const ending = new FakeClock(Date.now());
    await using other = await World.open({ clock: ending });
    const mine = await other.box(await other.host());
    const socket = await other.as(mine);
    const heard = drain(socket);
    socket.write('POST /drover.control.v1.ControlService/Register HTTP/1.1\r\nHost: control\r\nContent-Length: 100\r\n');
    socket.write('Content-Type: application/json\r\n\r\n');
    await expect.poll(() => other.listener.calls).toBe(1);
    const closed = other.listener.close();
    await ending.advance(2_100);
    await closed;
    expect(await heard).toBe('');
  });
});
