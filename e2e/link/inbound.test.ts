import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { create } from '@bufbuild/protobuf';
import { ControlListener } from '@drover/agent/network';
import { newSandboxId, type HostId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { link } from '@drover/protocol';
import { describe, expect, it } from 'vitest';
import { until, World, type RunningHost } from './harness.ts';

const sqlite = (directory: string): string => join(directory, 'store.sqlite');
const sandboxId = newSandboxId();

interface Arrival {
  readonly hostId: HostId;
  readonly inbound: link.SandboxInbound;
  readonly stream: Duplex;
}

/** Starts a control plane that serves sandboxes, and a host. `dial` connects from the host's sandbox, 127.0.0.2. */
async function openWorld(options: { readonly servesSandboxes?: boolean } = {}): Promise<{
  world: World;
  host: RunningHost;
  arrivals: Arrival[];
  dial: () => Socket;
  [Symbol.asyncDispose]: () => Promise<void>;
}> {
  const arrivals: Arrival[] = [];
  const onInbound = (hostId: HostId, inbound: link.SandboxInbound, stream: Duplex): void => void arrivals.push({ hostId, inbound, stream });
  const world = await World.open(sqlite, options.servesSandboxes === false ? {} : { onInbound });
  const host = await world.host();
  await until('the link is up at both ends', () => host.link.connected);
  const port = await freePort();
  const listener = new ControlListener({
    host: '127.0.0.1',
    port,
    holderOf: (address) => (address === '127.0.0.2' ? { id: sandboxId, interface: 'd-0' } : undefined),
    carry: (from, peerAddress, connection) =>
      host.link.carryInbound({ sandboxId: from.id, interface: from.interface, peerAddress }, connection),
    logger: silentLogger,
  });
  await listener.listen();
  world.onClose(async () => await listener.close());
  const dial = (): Socket => {
    const socket = connect({ host: '127.0.0.1', port, localAddress: '127.0.0.2', allowHalfOpen: true });
    // The test observes the error through the stream that it reads.
    socket.on('error', () => undefined);
    world.onClose(() => void socket.destroy());
    return socket;
  };
  return { world, host, arrivals, dial, [Symbol.asyncDispose]: async () => await world[Symbol.asyncDispose]() };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

async function arrival(arrivals: Arrival[]): Promise<Arrival> {
  await until('the connection arrives', () => arrivals.length > 0);
  return arrivals.shift() as Arrival;
}

/** Reads one direction to its end and leaves the other one open. Rejects when the connection breaks. */
async function readAll(stream: Duplex): Promise<Buffer> {
  const parts: Buffer[] = [];
  stream.on('data', (part: Buffer) => parts.push(part));
  await once(stream, 'end');
  return Buffer.concat(parts);
}

const cutOff = async (stream: Duplex): Promise<unknown> =>
  await readAll(stream).then(
    () => 'an end',
    (error: unknown) => (error as NodeJS.ErrnoException).code,
  );

describe('a connection from a sandbox', () => {
  it('I-13, I-14: arrives at the control plane with its host, and the sandbox, interface and address that the host observed', async () => {
    await using all = await openWorld();
    all.dial();
    const { hostId, inbound } = await arrival(all.arrivals);
    expect({ hostId, ...inbound }).toMatchObject({ hostId: all.host.id, sandboxId, interface: 'd-0', peerAddress: '127.0.0.2' });
  });

  it('I-13: carries bytes both ways, in order and unchanged, and each side ends independently', async () => {
    await using all = await openWorld();
    const socket = all.dial();
    const [sent, answer] = [randomBytes(2_000_000), randomBytes(1_000_000)];
    socket.end(sent);
    const { stream } = await arrival(all.arrivals);
    expect((await readAll(stream)).equals(sent)).toBe(true);
    stream.end(answer);
    expect((await readAll(socket)).equals(answer)).toBe(true);
  });

  it('I-13: a reset by either side resets the other', async () => {
    await using all = await openWorld();
    const first = all.dial();
    const reset = cutOff(first);
    (await arrival(all.arrivals)).stream.destroy();
    expect(await reset).toBe('ECONNRESET');

    const second = all.dial();
    const { stream } = await arrival(all.arrivals);
    second.resetAndDestroy();
    expect(await cutOff(stream)).toBe('ECONNRESET');
  });

  it('I-13: is reset when the link drops, and closed without delay while it is down; the next link carries new connections', async () => {
    await using all = await openWorld();
    const first = all.dial();
    await arrival(all.arrivals);
    all.host.relay.refusing = true;
    all.host.relay.cut();
    expect(await cutOff(first)).toBe('ECONNRESET');
    await until('the host notices', () => !all.host.link.connected);
    expect(await cutOff(all.dial())).toBe('ECONNRESET');
    expect(all.arrivals).toEqual([]);

    all.host.relay.refusing = false;
    await until('the link is up again', () => all.host.link.connected);
    const again = all.dial();
    again.write('hello');
    const { stream } = await arrival(all.arrivals);
    expect(String((await once(stream, 'data'))[0])).toBe('hello');
  });

  it('I-13: an unread connection slows the sandbox down, and not the link', async () => {
    await using all = await openWorld();
    const flood = Array.from({ length: 4 }, () => all.dial());
    const chunk = Buffer.alloc(64 * 1024, 7);
    const stalled = async (socket: Socket): Promise<void> => {
      for (let chunks = 0; chunks < 1000; chunks++) {
        if (socket.write(chunk)) continue;
        const drained = once(socket, 'drain').then(() => true);
        if (!(await Promise.race([drained, new Promise((resolve) => setTimeout(() => resolve(false), 500))]))) return;
      }
      throw new Error('64 MiB were accepted without a reader');
    };
    await Promise.all(flood.map(stalled));
    expect(all.arrivals).toHaveLength(flood.length);
    const response = await all.world.server.call(
      all.host.id,
      { case: 'list', value: create(link.ListSandboxesSchema) },
      { signal: AbortSignal.timeout(5000) },
    );
    expect(response.case).toBe('sandboxes');
  });

  it('I-13: is reset by a control plane that does not serve sandboxes', async () => {
    await using all = await openWorld({ servesSandboxes: false });
    expect(await cutOff(all.dial())).toBe('ECONNRESET');
  });

  it('I-13: is reset when the agent stops', async () => {
    await using all = await openWorld();
    const socket = all.dial();
    await arrival(all.arrivals);
    const reset = cutOff(socket);
    await all.host.stop();
    expect(await reset).toBe('ECONNRESET');
  });
});
