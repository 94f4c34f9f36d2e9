import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { initPort } from '@drover/init';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { TestDrover, tracesOf } from '../harness/index.ts';

let drover: TestDrover;
let box: { readonly id: string; readonly address: string };

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', '10.232.0.0/20']);
  await drover.begin('box', ['sleep', '1d']);
  box = await drover.sandbox('box');
});

afterAll(async () => {
  const left = await tracesOf(drover);
  await drover[Symbol.asyncDispose]();
  expect(await left()).toEqual([]);
});

/** Runs a Python program in `box`, as an ordinary user of it, and reads the JSON that it prints. */
async function inBox<T>(program: string, ...args: readonly string[]): Promise<T> {
  const { code, stdout, stderr } = await drover.exec('box', ['/usr/bin/python3', '-c', program, ...args], { user: '65534' });
  if (code !== 0) throw new Error(`the program in the sandbox ended with ${code}: ${stderr}`);
  return JSON.parse(stdout) as T;
}

const refill = `
import json, socket, sys
held, refused = [], 0
for _ in range(400):
    s = socket.socket()
    s.settimeout(2)
    try:
        s.connect((sys.argv[1], int(sys.argv[2])))
        held.append(s)
    except OSError:
        refused += 1
print(json.dumps({"held": len(held), "refused": refused}))
`;

test("I-3: a user of the sandbox reaches init's port with none of 400 connections", async () => {
  expect(await inBox(refill, box.address, String(initPort))).toEqual({ held: 0, refused: 400 });
  expect((await drover.exec('box', ['echo', 'here'])).stdout).toBe('here\n');
});

/** Seconds until the peer closes a connection that sends nothing, or a byte each second after what it begins with. */
const hold = `
import json, select, socket, sys, time
host, port, first = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
s = socket.create_connection((host, port), timeout=60)
began = time.monotonic()
try:
    if first: s.sendall(first)
    while True:
        if select.select([s], [], [], 1)[0] and not s.recv(4096): break
        if first: s.sendall(b"a")
except OSError: pass
print(json.dumps(time.monotonic() - began))
`;

async function holdFromHost(host: string, port: number, first: Buffer): Promise<number> {
  const socket = connect({ host, port });
  socket.on('error', () => undefined).resume();
  await once(socket, 'connect');
  const began = performance.now();
  if (first.length > 0) socket.write(first);
  const drip = setInterval(() => first.length > 0 && socket.write('a'), 1_000);
  await once(socket, 'close');
  clearInterval(drip);
  return (performance.now() - began) / 1_000;
}

test('every listener cuts a silent and a dripping peer at its limit, and takes others meanwhile', async () => {
  const { apiPort, linkPort } = JSON.parse(await readFile(join(drover.data, 'control-plane', 'server.json'), 'utf8')) as {
    apiPort: number;
    linkPort: number;
  };
  const gateway = '10.232.0.1';
  const silence = Buffer.alloc(0);
  // The head of a ClientHello that does not end, and of a request.
  const [hello, head] = [Buffer.from('16030300ff01', 'hex'), Buffer.from('GET / HTTP/1.1\r\n')];
  const inside = async (port: number, first: Buffer): Promise<number> => await inBox(hold, gateway, String(port), first.toString('hex'));
  /** Listener, limit in seconds as docs/limits.md has it, and its peers. */
  const peers: readonly (readonly [string, number, Promise<number>])[] = [silence, hello].flatMap((first) => [
    ['the API', 10, holdFromHost('127.0.0.1', apiPort, first)],
    ['the host link', 15, holdFromHost('127.0.0.1', linkPort, first)],
    ["init's port", 10, holdFromHost(box.address, initPort, first)],
    ['the registration port', 10, inside(9181, first)],
    ['the egress proxy', 10, inside(3128, first === hello ? head : first)],
  ]);
  // A new sandbox needs all of them but the proxy: its host's link, init's port and the registration port.
  await drover.begin('other', ['sleep', '1d']);
  expect((await drover.exec('other', ['echo', 'here'])).stdout).toBe('here\n');
  for (const [listener, limit, held] of peers) {
    expect(await held, listener).toBeGreaterThan(limit - 1);
    expect(await held, listener).toBeLessThan(limit + 10);
  }
});
