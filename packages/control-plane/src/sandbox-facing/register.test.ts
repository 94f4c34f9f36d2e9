import { DatabaseSync } from 'node:sqlite';
import { join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import { fromBinary, toBinary } from '@bufbuild/protobuf';
import { timestampMs } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError, createClient, type Client } from '@connectrpc/connect';
import { createConnectTransport, createGrpcTransport, Http2SessionManager } from '@connectrpc/connect-node';
import { FakeClock, systemClock, type Clock } from '@drover/foundation';
import { control } from '@drover/protocol';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { accessTokenOf, connectCall, grpcCall, http1, http2, registerBytes, registerJson } from './testing/calls.ts';
import { World, type Box } from './testing/world.ts';

let world: World;
let host: Awaited<ReturnType<World['host']>>;

beforeAll(async () => {
  world = await World.open();
  host = await world.host();
});
afterAll(async () => await world[Symbol.asyncDispose]());

const sockets: TLSSocket[] = [];
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
});

/** A Connect client on one connection. */
async function client(
  box: Box,
  token: string,
  transportOf: typeof createGrpcTransport = createGrpcTransport,
): Promise<Client<typeof control.ControlService>> {
  const socket = await world.as(box, 'h2');
  sockets.push(socket);
  const transport = transportOf({
    baseUrl: 'https://control',
    sessionManager: new Http2SessionManager('https://control', {}, { createConnection: () => socket }),
    interceptors: [
      (next) => async (request) => {
        request.header.set('authorization', `Bearer ${token}`);
        return await next(request);
      },
    ],
  });
  return createClient(control.ControlService, transport);
}

describe('Register', () => {
  it.each([
    ['gRPC', createGrpcTransport],
    ['Connect', (options: Parameters<typeof createGrpcTransport>[0]) => createConnectTransport({ ...options, httpVersion: '2' })],
  ])('I-13: a sandbox registers with its certificate and its token, and is who it registered as; %s', async (_name, transport) => {
    const box = await world.box(host);
    const { accessToken } = await (await client(box, box.token, transport)).register(box);
    const who = await (await client(box, accessToken, transport)).whoAmI({});
    expect(who).toMatchObject({ sandboxId: box.id, project: box.project, name: box.name, thumbprint: box.credentials.thumbprint });
    const found = await world.registry.lookupBySandbox(box.id);
    expect(found).toMatchObject({ kind: 'found', identity: { thumbprint: box.credentials.thumbprint } });
    expect(who.registeredAt && timestampMs(who.registeredAt)).toBe(found.kind === 'found' && found.identity.registeredAt);
  });

  it('I-13: works over HTTP/1.1 too, and without a project', async () => {
    const box = await world.box(host, { project: '', name: 'plain' });
    const answer = await http1(await world.as(box), 'register', { token: box.token, body: registerJson(box) });
    const { accessToken } = JSON.parse(answer.body) as { accessToken: string };
    expect(answer.raw).not.toMatch(/^date:/im);
    const who = await http1(await world.as(box), 'whoAmI', { token: accessToken });
    expect(JSON.parse(who.body)).toMatchObject({ sandboxId: box.id, name: 'plain', thumbprint: box.credentials.thumbprint });
  });

  it('I-15: the same certificate may register again, without an event', async () => {
    const box = await world.box(host);
    const first = await (await client(box, box.token)).register(box);
    const before = await world.registry.lookupBySandbox(box.id);
    const events = await world.store.events.lastId();
    const second = await (await client(box, box.token)).register(box);
    expect(await world.registry.lookupBySandbox(box.id)).toEqual(before);
    expect(await world.store.events.lastId()).toBe(events);
    // After a lost response both access tokens are valid.
    for (const { accessToken } of [first, second]) {
      expect(await (await client(box, accessToken)).whoAmI({})).toMatchObject({ sandboxId: box.id });
    }
  });

  it('I-11: a start brings a new certificate, which replaces the row; the old one is unknown afterwards', async () => {
    const box = await world.box(host);
    const { accessToken } = await (await client(box, box.token)).register(box);
    const next = { ...box, ...(await world.start(box)) };
    const answer = await (await client(next, next.token)).register(next);
    expect(await (await client(next, answer.accessToken)).whoAmI({})).toMatchObject({ thumbprint: next.credentials.thumbprint });
    await expect((await client(box, accessToken)).whoAmI({})).rejects.toMatchObject({ code: Code.PermissionDenied });
    await expect((await client(box, box.token)).register(box)).rejects.toMatchObject({ code: Code.PermissionDenied });
  });

  it('I-17: a failure of the store within the transaction leaves the token unspent, and is INTERNAL', async () => {
    const box = await world.box(host);
    const database = new DatabaseSync(join(world.directory, 'store.sqlite'));
    // The token is consumed before the row is inserted, in one transaction.
    database.exec(`CREATE TRIGGER full BEFORE INSERT ON identities BEGIN SELECT RAISE(ABORT, 'the disk is full'); END`);
    const session = http2(await world.as(box, 'h2'));
    const failed = await grpcCall(session, 'register', registerBytes(box), box.token);
    expect(failed.trailers).toEqual(expect.arrayContaining(['grpc-status', '13']));
    expect(JSON.stringify(failed)).not.toContain('disk');
    expect(world.log.some(({ code, err }) => code === 'internal' && JSON.stringify(err).includes('the disk is full'))).toBe(true);
    expect(await world.registry.lookupBySandbox(box.id)).toEqual({ kind: 'unknown' });
    database.exec('DROP TRIGGER full');
    database.close();
    const answer = await connectCall(session, 'register', registerBytes(box), box.token);
    expect(accessTokenOf(answer)).not.toBe('');
    expect(await world.registry.lookupBySandbox(box.id)).toMatchObject({ kind: 'found' });
    session.destroy();
  });

  it.each([-299_000, 299_000])('I-17: a clock skew of five minutes is tolerated (%i ms)', async (offMs) => {
    // The clock of the authority differs from the clock of the machine, which TLS uses, and from that of the listener.
    const authorityClock: Clock = { now: () => Date.now() + offMs, sleep: (ms, signal) => systemClock.sleep(ms, signal) };
    await using skewed = await World.open({ authorityClock });
    const box = await skewed.box(await skewed.host());
    const answer = await http1(await skewed.as(box), 'register', { token: box.token, body: registerJson(box) });
    expect(answer.status).toBe(200);
  });

  it('I-10: every accepted call refreshes last seen', async () => {
    const clock = new FakeClock(Date.now());
    await using quiet = await World.open({ clock });
    const box = await quiet.box(await quiet.host());
    const session = http2(await quiet.as(box, 'h2'));
    const token = accessTokenOf(await connectCall(session, 'register', registerBytes(box), box.token));
    await clock.advance(20_000);
    const { body } = await connectCall(session, 'whoAmI', toBinary(control.WhoAmIRequestSchema, {} as control.WhoAmIRequest), token);
    expect(fromBinary(control.WhoAmIResponseSchema, body).sandboxId).toBe(box.id);
    const calledAt = clock.now();
    await clock.advance(10_000);
    await expect.poll(async () => (await quiet.store.identities.findBySandbox(box.id))?.lastSeenAt).toBe(calledAt);
    session.destroy();
  });

  it('I-18: a revocation takes effect at the next call, also on an open connection', async () => {
    const box = await world.box(host);
    const { accessToken } = await (await client(box, box.token)).register(box);
    const caller = await client(box, accessToken);
    expect(await caller.whoAmI({})).toMatchObject({ sandboxId: box.id });
    await world.registry.revoke(box.id);
    const refused: unknown = await caller.whoAmI({}).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(ConnectError);
    expect(refused).toMatchObject({ code: Code.PermissionDenied, rawMessage: 'the identity was not accepted' });
  });

  it('I-6: the expiry of a certificate takes effect at the next call, also on an open connection', async () => {
    const clock = new FakeClock(Date.now());
    await using long = await World.open({ clock, sandboxLifetimeMs: 60_000 });
    const box = await long.box(await long.host());
    const session = http2(await long.as(box, 'h2'));
    const token = accessTokenOf(await connectCall(session, 'register', registerBytes(box), box.token));
    await clock.advance(50_000);
    expect((await connectCall(session, 'whoAmI', new Uint8Array(), token)).headers[1]).toBe('200');
    await clock.advance(11_000);
    const refused = connectCall(session, 'whoAmI', new Uint8Array(), token);
    await expect.poll(() => long.refusals(box.origin)).toEqual(['the certificate has expired on this connection']);
    await clock.advance(1_000);
    expect((await refused).headers[1]).toBe('403');
    session.destroy();
  });

  it('concurrent calls of many sandboxes keep their identities apart', async () => {
    const boxes = await Promise.all(Array.from({ length: 30 }, () => world.box(host)));
    const who = await Promise.all(
      boxes.map(async (box, index) => {
        const { accessToken } = await (await client(box, box.token)).register(box);
        if (index % 2 === 0) return (await (await client(box, accessToken)).whoAmI({})).sandboxId;
        const { body } = await http1(await world.as(box), 'whoAmI', { token: accessToken });
        return (JSON.parse(body) as { sandboxId: string }).sandboxId;
      }),
    );
    expect(who).toEqual(boxes.map(({ id }) => id));
  });
});
