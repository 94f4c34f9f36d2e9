import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { openListener, receiveSockets } from './index.ts';
import { supervise } from './testing/programs.ts';

describe('sd_listen_fds(3): the receiving half', () => {
  test('returns the sockets by name from descriptor 3 on, and removes the variables', () => {
    const env = { LISTEN_PID: '7', LISTEN_FDS: '3', LISTEN_FDNAMES: 'proxy:control:proxy', OTHER: 'x' };
    expect([...receiveSockets(env, 7)]).toEqual([
      ['proxy', [3, 5]],
      ['control', [4]],
    ]);
    expect(env).toEqual({ OTHER: 'x' });
  });

  test.each([
    ['no variables', {}],
    ['another pid', { LISTEN_PID: '8', LISTEN_FDS: '1' }],
    ['no pid', { LISTEN_FDS: '1' }],
  ])('G-9: with %s, no socket was passed to this process', (_, env) => {
    expect(receiveSockets(env, 7).size).toBe(0);
    expect(env).toEqual({});
  });

  test('sockets without names are called unknown', () => {
    expect([...receiveSockets({ LISTEN_PID: '7', LISTEN_FDS: '2' }, 7)]).toEqual([['unknown', [3, 4]]]);
  });

  test.each([
    ['-1', undefined],
    ['1x', undefined],
    ['65', undefined],
    ['2', 'one'],
    ['1', 'one:two'],
  ])('LISTEN_FDS=%s with LISTEN_FDNAMES=%s is refused', (count, names) => {
    const env = { LISTEN_PID: '7', LISTEN_FDS: count, ...(names !== undefined && { LISTEN_FDNAMES: names }) };
    expect(() => receiveSockets(env, 7)).toThrow(expect.objectContaining({ code: 'invalid-config' }));
  });
});

/** Connects and returns the first bytes. */
async function greeting(to: number | string): Promise<string> {
  const socket: Socket = typeof to === 'number' ? connect(to, '127.0.0.1') : connect(to);
  const [data] = (await once(socket, 'data')) as [Buffer];
  socket.destroy();
  return data.toString();
}

const server = `
  const { receiveSockets } = await import(${JSON.stringify(new URL('./index.ts', import.meta.url).href)});
  const { createServer } = await import('node:net');
  const servers = [...receiveSockets()].flatMap(([name, fds]) =>
    fds.map((fd) => createServer((socket) => socket.end(name + ' ' + process.pid)).listen({ fd })));
  // What it has accepted it answers.
  process.on('SIGTERM', () => servers.forEach((server) => server.close()));`;
const argv = [process.execPath, '--conditions=development', '--input-type=module', '-e', server] as const;

test('G-9: connections made before the start and during a restart wait for the daemon, and each is answered', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-sockets-'));
  onTestFinished(async () => await rm(directory, { recursive: true }));
  using tcp = openListener('web', { host: '127.0.0.1', port: 0 });
  using unix = openListener('control', { path: join(directory, 'control.sock'), mode: 0o600 });
  const port = Number(tcp.address.split(':')[1]);
  expect((await stat(unix.address)).mode & 0o777).toBe(0o600);
  const early = [greeting(port), greeting(unix.address)];
  const child = supervise('', { argv, sockets: [tcp, unix] });
  child.start();
  const [web, control] = await Promise.all(early);
  const { pid } = child.status();
  expect([web, control]).toEqual([`web ${pid}`, `control ${pid}`]);

  child.restart();
  while (child.status().restarts === 0) expect(await greeting(port)).toMatch(/^web \d+$/);
  expect(await greeting(port)).toBe(`web ${child.status().pid}`);
  expect(child.status().pid).not.toBe(pid);
});

test('an address that another program listens on is refused with port-in-use', () => {
  using first = openListener('web', { host: '127.0.0.1', port: 0 });
  const port = Number(first.address.split(':')[1]);
  expect(() => openListener('web', { host: '127.0.0.1', port })).toThrow(expect.objectContaining({ code: 'port-in-use' }));
});

test('a socket file that a dead process left is replaced', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-sockets-'));
  onTestFinished(async () => await rm(directory, { recursive: true }));
  const path = join(directory, 'control.sock');
  const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
  await once(spawn(process.execPath, ['-e', script]), 'exit');
  using socket = openListener('control', { path, mode: 0o660 });
  expect((await stat(socket.address)).mode & 0o777).toBe(0o660);
});
