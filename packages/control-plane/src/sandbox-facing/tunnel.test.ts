import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { connect, type TLSSocket } from 'node:tls';
import { create } from '@bufbuild/protobuf';
import type { HostId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { link, methodDefinition, TunnelStream } from '@drover/protocol';
import { Client, credentials as grpcCredentials, status, type StatusObject } from '@grpc/grpc-js';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { LinkServer } from '../hub/index.ts';
import { accessTokenOf, connectCall, grpcCall, http1, http2, registerBytes, registerJson } from './testing/calls.ts';
import { issue, selfSigned, type Credentials } from './testing/certificates.ts';
import { World, type Box, type Origin } from './testing/world.ts';

let world: World;
let server: LinkServer;
let port: number;

beforeAll(async () => {
  world = await World.open();
  server = new LinkServer({
    store: world.store,
    ca: world.ca,
    identity: await world.ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] }),
    replica: 'replica-1',
    onInbound: world.listener.accept,
    logger: silentLogger,
  });
  ({ port } = await server.listen({ host: '127.0.0.1', port: 0 }));
});
afterAll(async () => {
  await server.close();
  await world[Symbol.asyncDispose]();
});

/** A host with a handwritten link: its stream, and tunnels for its sandboxes' connections. */
class RawHost implements Disposable {
  readonly id: HostId;
  readonly #client: Client;

  private constructor(id: HostId, client: Client) {
    this.id = id;
    this.#client = client;
  }

  static async connect(id: HostId): Promise<RawHost> {
    const own = await issue(async (csrDer) => await world.ca.signHost(id, csrDer));
    const tls = grpcCredentials.createSsl(Buffer.from(world.ca.caPem), Buffer.from(own.keyPem), Buffer.from(own.certificatePem), {
      checkServerIdentity: () => undefined,
    });
    const client = new Client(`localhost:${port}`, tls, { 'grpc.use_local_subchannel_pool': 1 });
    const method = methodDefinition(link.HostLinkService.method.connect);
    const call = client.makeBidiStreamRequest(method.path, method.requestSerialize, method.responseDeserialize);
    call.on('error', () => undefined);
    const capacity = { cpuMillis: 40_000, memoryBytes: 100n * 1024n ** 3n, slots: 50 };
    const value = { hostId: id, hostname: id.slice(0, 6), capacity, runtimes: ['fake'], bootId: 'boot-1' };
    call.write(create(link.HostFrameSchema, { frame: { case: 'register', value } }));
    await once(call, 'data');
    call.resume();
    return new RawHost(id, client);
  }

  /** Forwards a sandbox's connection as a host does. */
  inbound({ sandboxId, interface: name, peerAddress }: Origin): { readonly stream: Duplex; readonly status: Promise<StatusObject> } {
    const method = methodDefinition(link.HostLinkService.method.tunnel);
    const call = this.#client.makeBidiStreamRequest(method.path, method.requestSerialize, method.responseDeserialize);
    const value = create(link.TunnelOpenSchema, {
      direction: { case: 'inbound', value: create(link.SandboxInboundSchema, { sandboxId, interface: name, peerAddress }) },
    });
    call.write(create(link.TunnelFrameSchema, { frame: { case: 'open', value } }));
    const stream = new TunnelStream(call, () => call.cancel());
    stream.on('error', () => undefined);
    return { stream, status: new Promise((resolve) => call.on('status', resolve)) };
  }

  async tls(origin: Origin, credentials: Credentials, protocol: 'h2' | 'http/1.1'): Promise<TLSSocket> {
    const { certificatePem: cert, keyPem: key } = credentials;
    const { stream } = this.inbound(origin);
    const socket = connect({ socket: stream, ca: world.ca.caPem, servername: 'localhost', cert, key, ALPNProtocols: [protocol] });
    await once(socket, 'secureConnect');
    return socket;
  }

  [Symbol.dispose](): void {
    this.#client.close();
  }
}

/** A connected host with a running sandbox. */
async function hostWithBox(): Promise<{ readonly host: RawHost; readonly box: Box }> {
  const { id } = await world.host();
  const host = await RawHost.connect(id);
  const row = await world.store.hosts.get(id);
  return { host, box: await world.box({ id, epoch: row?.epoch ?? 0 }) };
}

describe('through the link of a host', () => {
  it('I-13: a sandbox registers, and is known afterwards', async () => {
    const { host, box } = await hostWithBox();
    using _ = host;
    const session = http2(await host.tls(box.origin, box.credentials, 'h2'));
    const token = accessTokenOf(await connectCall(session, 'register', registerBytes(box), box.token));
    session.destroy();
    const who = await http1(await host.tls(box.origin, box.credentials, 'http/1.1'), 'whoAmI', { token });
    expect(JSON.parse(who.body)).toMatchObject({ sandboxId: box.id, thumbprint: box.credentials.thumbprint });
    await expect.poll(() => world.listener.connections, { timeout: 10_000 }).toBe(0);
  });

  it('I-14: the certificate of the link determines the host of a call, not the claims of that host', async () => {
    const { host, box } = await hostWithBox();
    const thief = await hostWithBox();
    using _ = host;
    using __ = thief.host;
    const refusedAsHost = async (): Promise<void> => {
      const answer = await http1(await thief.host.tls(box.origin, box.credentials, 'http/1.1'), 'register', {
        token: box.token,
        body: registerJson(box),
      });
      expect(answer.status).toBe(403);
    };
    await refusedAsHost();
    expect(world.refusals(box.origin)).toEqual(['the registration was refused: host-mismatch']);
    expect(world.listener.lastRefusal(box.id, box.credentials.thumbprint)).toBeUndefined();
    // The token is unspent.
    const session = http2(await host.tls(box.origin, box.credentials, 'h2'));
    expect((await grpcCall(session, 'register', registerBytes(box), box.token)).trailers).toEqual(['grpc-status', '0']);
    session.destroy();
  });

  it('I-18: a peer that TLS refuses receives no application data, and its tunnel ends', async () => {
    const { host, box } = await hostWithBox();
    using _ = host;
    const leaf = { commonNames: ['red.box'], uris: [world.ca.names.sandbox(box.id)] };
    const { certificatePem: cert, keyPem: key } = await selfSigned(leaf);
    const { stream, status: ended } = host.inbound(box.origin);
    const socket = connect({ socket: stream, ca: world.ca.caPem, servername: 'localhost', cert, key, ALPNProtocols: ['http/1.1'] });
    socket.on('error', () => undefined);
    let heard = 0;
    socket.on('data', (part: Buffer) => (heard += part.length));
    expect(await ended).toMatchObject({ code: expect.not.toBeOneOf([status.OK]) });
    expect(heard).toBe(0);
    expect(world.log.some(({ why }) => why === 'DEPTH_ZERO_SELF_SIGNED_CERT')).toBe(true);
    await expect.poll(() => world.listener.connections, { timeout: 10_000 }).toBe(0);
  });

  it('the end of the link ends the connections that it carried', async () => {
    const { host, box } = await hostWithBox();
    const socket = await host.tls(box.origin, box.credentials, 'h2');
    socket.on('error', () => undefined);
    expect(world.listener.connections).toBe(1);
    server.disconnect(host.id, link.GoAway_Reason.REMOVED, 'it was removed');
    await expect.poll(() => world.listener.connections, { timeout: 10_000 }).toBe(0);
    host[Symbol.dispose]();
  });
});
