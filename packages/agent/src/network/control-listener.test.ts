import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { FakeClock, newSandboxId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { sandboxConnectionsPerHost } from '@drover/spec';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { controlConnectionRestMs, controlConnectionsPerSandbox } from '../limits.ts';
import { ControlListener, type ControlListenerOptions } from './control-listener.ts';
import type { AddressHolder } from './network.ts';

const host = '127.0.0.1';
const [here, there]: [SandboxId, SandboxId] = [newSandboxId(), newSandboxId()];
/** Loopback addresses stand for the sandboxes'. */
let holders: Map<string, AddressHolder>;
let carried: { readonly from: AddressHolder; readonly peerAddress: string; readonly connection: Socket }[];
let clock: FakeClock;
let port: number;
const opened: ControlListener[] = [];
const dialled: Socket[] = [];

beforeEach(async () => {
  holders = new Map([
    ['127.0.0.2', { id: here, interface: 'd-0' }],
    ['127.0.0.3', { id: there, interface: 'd-1' }],
  ]);
  carried = [];
  clock = new FakeClock();
  port = await freePort();
});
afterEach(async () => {
  for (const socket of dialled.splice(0)) socket.destroy();
  for (const listener of opened.splice(0)) await listener.close();
});

async function freePort(): Promise<number> {
  const server = createServer().listen(0, host);
  await once(server, 'listening');
  const { port: free } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return free;
}

async function listen(options: Partial<ControlListenerOptions> = {}): Promise<ControlListener> {
  const listener = new ControlListener({
    host,
    port,
    holderOf: (address) => holders.get(address),
    carry: (from, peerAddress, connection) => {
      carried.push({ from, peerAddress, connection });
      connection.pipe(connection);
    },
    clock,
    logger: silentLogger,
    ...options,
  });
  opened.push(listener);
  await listener.listen();
  return listener;
}

function dial(from: string): Socket {
  const socket = connect({ host, port, localAddress: from });
  dialled.push(socket);
  // What becomes of it is asked below.
  socket.on('error', () => undefined);
  return socket;
}

/** What the listener says back to a byte; `reset` when it closes the connection. */
async function answer(socket: Socket): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  socket.once('data', (data) => resolve(String(data)));
  socket.once('close', () => resolve('reset'));
  socket.write('x');
  return await promise;
}

describe('the control listener', () => {
  test('I-14: a connection is carried with the sandbox, the interface and the address that the host knows it by', async () => {
    await listen();
    expect(await answer(dial('127.0.0.2'))).toBe('x');
    expect(await answer(dial('127.0.0.3'))).toBe('x');
    expect(carried.map(({ from, peerAddress }) => ({ ...from, peerAddress }))).toEqual([
      { id: here, interface: 'd-0', peerAddress: '127.0.0.2' },
      { id: there, interface: 'd-1', peerAddress: '127.0.0.3' },
    ]);
  });

  test('I-14: one from an address that is no sandbox’s is closed and never carried', async () => {
    await listen();
    expect(await answer(dial('127.0.0.4'))).toBe('reset');
    holders.delete('127.0.0.2');
    expect(await answer(dial('127.0.0.2'))).toBe('reset');
    expect(carried).toEqual([]);
  });

  test('R-9: those of a sandbox whose address was taken back are closed, those of others are not', async () => {
    const listener = await listen();
    const [mine, others] = [dial('127.0.0.2'), dial('127.0.0.3')];
    expect(await Promise.all([answer(mine), answer(others)])).toEqual(['x', 'x']);
    listener.released(here);
    await vi.waitFor(() => expect(mine.destroyed).toBe(true));
    await vi.waitFor(() => expect(carried.map(({ connection }) => connection.destroyed)).toEqual([true, false]));
    expect(await answer(others)).toBe('x');
  });

  test('I-13: without a way to the control plane it is closed at once, and the next one finds the way', async () => {
    let stands = false;
    await listen({
      carry: (_, __, connection) => {
        if (!stands) throw new Error('the link is down');
        connection.pipe(connection);
      },
    });
    expect(await answer(dial('127.0.0.2'))).toBe('reset');
    stands = true;
    expect(await answer(dial('127.0.0.2'))).toBe('x');
  });

  test('one sandbox has so many connections and no more; others have theirs; a place is free again after a rest', async () => {
    await listen();
    const mine = Array.from({ length: controlConnectionsPerSandbox }, () => dial('127.0.0.2'));
    expect(await Promise.all(mine.map(answer))).toEqual(mine.map(() => 'x'));
    expect(await answer(dial('127.0.0.2'))).toBe('reset');
    expect(await answer(dial('127.0.0.3'))).toBe('x');

    mine[0]?.destroy();
    await vi.waitFor(() => expect(carried[0]?.connection.closed).toBe(true));
    expect(await answer(dial('127.0.0.2'))).toBe('reset');
    await clock.advance(controlConnectionRestMs);
    expect(await answer(dial('127.0.0.2'))).toBe('x');
    expect(await answer(dial('127.0.0.2'))).toBe('reset');
  });

  test('all sandboxes together have so many connections and no more', async () => {
    const many = Array.from({ length: 255 }, (_, i) => `127.0.1.${i + 1}`);
    const more = Array.from({ length: 2 }, (_, i) => `127.0.2.${i + 1}`);
    for (const address of [...many, ...more]) holders.set(address, { id: newSandboxId(), interface: address });
    await listen();
    const each = [...many, ...more].flatMap((address) => Array.from({ length: controlConnectionsPerSandbox }, () => address));
    const taken = each.slice(0, sandboxConnectionsPerHost).map(dial);
    expect(new Set(await Promise.all(taken.map(answer)))).toEqual(new Set(['x']));
    expect(await answer(dial('127.0.0.2'))).toBe('reset');
    taken[0]?.destroy();
    await vi.waitFor(async () => expect(await answer(dial('127.0.0.2'))).toBe('x'));
  });

  test('each side ends for itself', async () => {
    await listen({
      carry: (_, __, connection) => {
        connection.resume();
        connection.once('end', () => connection.end('all of it'));
      },
    });
    const socket = dial('127.0.0.2');
    socket.end('x');
    const [data] = (await once(socket, 'data')) as [Buffer];
    expect(String(data)).toBe('all of it');
  });

  test('closed, it resets what is open and does not listen any more', async () => {
    const listener = await listen();
    const socket = dial('127.0.0.2');
    expect(await answer(socket)).toBe('x');
    const closed = new Promise((resolve) => socket.once('close', resolve));
    await listener.close();
    await closed;
    expect(await answer(dial('127.0.0.2'))).toBe('reset');
    await listen();
    expect(await answer(dial('127.0.0.2'))).toBe('x');
  });

  test('a port that somebody else holds is named, with what to do', async () => {
    await listen();
    await expect(listen()).rejects.toMatchObject({
      code: 'port-in-use',
      message: `${host}:${port}, where sandboxes are to reach the control plane, is held by another process`,
      hint: expect.stringContaining(`ss -Hltnp sport = :${port}`) as string,
    });
  });

  test('an address that is not there is said to be', async () => {
    await expect(listen({ host: '192.0.2.1' })).rejects.toMatchObject({ code: 'unavailable' });
  });
});
