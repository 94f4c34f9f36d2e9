import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { create } from '@bufbuild/protobuf';
import { DroverError, newSandboxId } from '@drover/foundation';
import { errorToWire, link, methodDefinition } from '@drover/protocol';
import { status, type StatusObject } from '@grpc/grpc-js';
import { describe, expect, it } from 'vitest';
import { until, World, type RunningHost } from './harness.ts';

/** Reads one direction to its end. The other one stays open; `stream/consumers` would destroy it. */
async function readAll(stream: Duplex): Promise<Buffer> {
  const parts: Buffer[] = [];
  stream.on('data', (part: Buffer) => parts.push(part));
  await once(stream, 'end');
  return Buffer.concat(parts);
}

const text = async (stream: Duplex): Promise<string> => (await readAll(stream)).toString();
const sqlite = (directory: string): string => join(directory, 'store.sqlite');
const sandboxId = newSandboxId();

/** Starts a host whose sandbox has one TCP port, served by `serve`. */
async function hostWithPort(world: World, serve: (socket: Socket) => unknown): Promise<RunningHost> {
  const host = await world.host();
  await world.connected(host);
  const server = createServer({ allowHalfOpen: true }, (socket) => void serve(socket));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  world.onClose(() => void server.close());
  host.sandboxes.dialled = async () => {
    const socket = connect({ port: (server.address() as AddressInfo).port, host: '127.0.0.1', allowHalfOpen: true });
    await once(socket, 'connect');
    return socket;
  };
  return host;
}

const open = (world: World, host: RunningHost): Promise<Duplex> => world.server.openTunnel(host.id, { sandboxId, port: 80 });

describe('tunnels', () => {
  it('L-30: bytes pass both ways, in order and unchanged', async () => {
    await using world = await World.open(sqlite);
    const host = await hostWithPort(world, (socket) => socket.pipe(socket));
    const tunnel = await open(world, host);
    const sent = randomBytes(3_000_000);
    tunnel.end(sent);
    expect((await readAll(tunnel)).equals(sent)).toBe(true);
  });

  it('L-30: the control plane can end its direction and still read the response', async () => {
    await using world = await World.open(sqlite);
    const host = await hostWithPort(world, async (socket) => {
      const question = await text(socket);
      socket.end(`${question.length} bytes`);
    });
    const tunnel = await open(world, host);
    tunnel.end('question');
    expect(await text(tunnel)).toBe('8 bytes');
  });

  it('L-30: the sandbox can end its direction and still read', async () => {
    await using world = await World.open(sqlite);
    const heard = Promise.withResolvers<string>();
    const host = await hostWithPort(world, (socket) => {
      socket.end('first and last');
      text(socket).then(heard.resolve, heard.reject);
    });
    const tunnel = await open(world, host);
    expect(await text(tunnel)).toBe('first and last');
    tunnel.end('still here');
    expect(await heard.promise).toBe('still here');
  });

  it('L-30: closing either end closes the other', async () => {
    await using world = await World.open(sqlite);
    const inside: Socket[] = [];
    const host = await hostWithPort(world, (socket) => {
      socket.on('error', () => undefined);
      socket.resume();
      inside.push(socket);
    });
    const first = await open(world, host);
    await until('the port is dialled', () => inside.length === 1);
    first.destroy();
    await until('the connection in the sandbox is closed', () => inside[0]?.destroyed === true);

    const second = await open(world, host);
    const cut = expect(text(second)).rejects.toMatchObject({ code: 'ECONNRESET' });
    await until('the port is dialled', () => inside.length === 2);
    inside[1]?.resetAndDestroy();
    await cut;
    expect(second.destroyed).toBe(true);
  });

  it('L-30: a dropped link breaks its tunnels, and no reader sees a normal end', async () => {
    await using world = await World.open(sqlite);
    const host = await hostWithPort(world, (socket) => {
      socket.on('error', () => undefined);
      socket.write('half of it');
    });
    const tunnel = await open(world, host);
    await once(tunnel, 'data');
    const ended = text(tunnel);
    host.relay.cut();
    await expect(ended).rejects.toMatchObject({ code: 'ECONNRESET' });
  });

  it('L-30: an end that does not read slows the other one down', async () => {
    await using world = await World.open(sqlite);
    const host = await hostWithPort(world, (socket) => {
      socket.on('error', () => undefined);
      socket.pause();
    });
    const tunnel = await open(world, host);
    const chunk = Buffer.alloc(64 * 1024, 7);
    let accepted = 0;
    const stalled = async (): Promise<boolean> =>
      await Promise.race([
        once(tunnel, 'drain').then(() => false),
        new Promise<boolean>((resolve) => setTimeout(() => resolve(true), 500)),
      ]);
    for (let blocked = false; !blocked && accepted < 64 * 1024 * 1024; ) {
      accepted += chunk.length;
      if (!tunnel.write(chunk)) blocked = await stalled();
    }
    // The kernel's socket buffers and the windows hold some megabytes. Without flow control all 64 would be accepted.
    expect(accepted).toBeLessThan(24 * 1024 * 1024);
    tunnel.destroy();
  });

  it("L-30: an unreachable port is the host's own error", async () => {
    await using world = await World.open(sqlite);
    const host = await world.host();
    await world.connected(host);
    await expect(open(world, host)).rejects.toMatchObject({ code: 'sandbox-not-running' });
    host.sandboxes.dialled = () => Promise.reject(new DroverError('unavailable', 'nothing listens on port 80'));
    await expect(open(world, host)).rejects.toMatchObject({ code: 'unavailable', message: 'nothing listens on port 80' });
    await expect(world.server.openTunnel(host.id, { sandboxId, port: 0 })).rejects.toMatchObject({ code: 'invalid-argument' });
  });

  it('L-30: a caller that aborts stops waiting without delay', async () => {
    await using world = await World.open(sqlite);
    const host = await world.host();
    await world.connected(host);
    host.sandboxes.dialled = () => new Promise(() => undefined);
    const impatient = new AbortController();
    const opening = world.server.openTunnel(host.id, { sandboxId, port: 80 }, impatient.signal);
    impatient.abort();
    await expect(opening).rejects.toMatchObject({ code: 'cancelled' });
  });

  it('L-30: a host that fails to open the tunnel reports the reason in it, and the caller receives it', async () => {
    await using world = await World.open(sqlite);
    const identity = await world.identity();
    const raw = await world.raw(identity);
    raw.register(identity.hostId);
    await raw.frame('welcome');
    const opening = expect(world.server.openTunnel(identity.hostId, { sandboxId, port: 80 })).rejects.toMatchObject({
      code: 'sandbox-not-running',
      message: 'the sandbox ended meanwhile',
    });
    const { operation } = await raw.frame('command');
    const { tunnelId } = operation.value as link.OpenTunnel;
    const method = methodDefinition(link.HostLinkService.method.tunnel);
    const call = raw.client.makeBidiStreamRequest(method.path, method.requestSerialize, method.responseDeserialize);
    call.resume();
    const error = errorToWire(new DroverError('sandbox-not-running', 'the sandbox ended meanwhile'));
    const value = create(link.TunnelOpenSchema, { direction: { case: 'tunnelId', value: tunnelId }, error });
    call.write(create(link.TunnelFrameSchema, { frame: { case: 'open', value } }));
    await opening;
    // The call has then ended normally.
    expect(await new Promise<StatusObject>((resolve) => call.on('status', resolve))).toMatchObject({ code: status.OK });
    expect(world.server.isConnected(identity.hostId)).toBe(true);
  });

  it("L-30: a host can neither respond for another host's tunnel nor open an unrequested one", async () => {
    await using world = await World.open(sqlite);
    const [mine, theirs] = [await world.identity(), await world.identity()];
    const [asked, other] = [await world.raw(mine), await world.raw(theirs)];
    asked.register(mine.hostId);
    other.register(theirs.hostId);
    await asked.frame('welcome');
    await other.frame('welcome');
    const impatient = new AbortController();
    const opening = world.server.openTunnel(mine.hostId, { sandboxId, port: 80 }, impatient.signal);
    const { operation } = await asked.frame('command');
    const { tunnelId } = operation.value as link.OpenTunnel;
    const method = methodDefinition(link.HostLinkService.method.tunnel);
    const answer = async (client: typeof other.client, frame: link.TunnelFrame['frame']): Promise<StatusObject> => {
      const call = client.makeBidiStreamRequest(method.path, method.requestSerialize, method.responseDeserialize);
      call.on('error', () => undefined);
      call.resume();
      call.write(create(link.TunnelFrameSchema, { frame }));
      return await new Promise((resolve) => call.on('status', resolve));
    };
    const openFrame = (direction: link.TunnelOpen['direction']): link.TunnelFrame['frame'] => ({
      case: 'open',
      value: create(link.TunnelOpenSchema, { direction }),
    });
    expect(await answer(other.client, openFrame({ case: 'tunnelId', value: tunnelId }))).toMatchObject({ code: status.NOT_FOUND });
    expect(await answer(asked.client, openFrame({ case: 'tunnelId', value: 't-unknown' }))).toMatchObject({ code: status.NOT_FOUND });
    expect(await answer(asked.client, { case: 'data', value: new Uint8Array(1) })).toMatchObject({ code: status.INVALID_ARGUMENT });
    const inbound = openFrame({ case: 'inbound', value: create(link.SandboxInboundSchema, { sandboxId }) });
    expect(await answer(asked.client, inbound)).toMatchObject({ code: status.UNIMPLEMENTED });
    impatient.abort();
    await expect(opening).rejects.toMatchObject({ code: 'cancelled' });

    // L-4: without a link there are no tunnels.
    const unlinked = await world.raw(await world.identity());
    expect(await answer(unlinked.client, openFrame({ case: 'tunnelId', value: tunnelId }))).toMatchObject({
      code: status.PERMISSION_DENIED,
    });
  });
});
