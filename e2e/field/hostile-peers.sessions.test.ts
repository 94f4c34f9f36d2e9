import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { initPort } from '@drover/init';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, TestDrover, tracesOf } from '../harness/index.ts';

/** The gateway's address is the first of the pool. */
const [pool, gateway] = ['10.232.0.0/20', '10.232.0.1'];

let drover: TestDrover;
let box: { readonly id: string; readonly address: string };

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', pool]);
  await drover.begin('box', ['sleep', '1d']);
  box = await drover.sandbox('box');
});

afterAll(async () => {
  const left = await tracesOf(drover);
  await drover[Symbol.asyncDispose]();
  expect(await left()).toEqual([]);
});

/** Runs a Python program in a sandbox, as an ordinary user of it, and reads the JSON that it prints. */
async function inSandbox<T>(name: string, program: string, ...args: readonly string[]): Promise<T> {
  const { code, stdout, stderr } = await drover.exec(name, ['/usr/bin/python3', '-c', program, ...args], { user: '65534' });
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
  expect(await inSandbox('box', refill, box.address, String(initPort))).toEqual({ held: 0, refused: 400 });
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
  const silence = Buffer.alloc(0);
  // The head of a ClientHello that does not end, and of a request.
  const [hello, head] = [Buffer.from('16030300ff01', 'hex'), Buffer.from('GET / HTTP/1.1\r\n')];
  const inside = async (port: number, first: Buffer): Promise<number> =>
    await inSandbox('box', hold, gateway, String(port), first.toString('hex'));
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

const reaches = `
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)
    print("true")
except OSError:
    print("false")
`;

describe('I-4: containment', () => {
  const registrationPort = async (): Promise<boolean> => await inSandbox('culprit', reaches, gateway, '9181');

  test('a revoked sandbox does not reach the registration port, and is trusted again after a release', async () => {
    await drover.begin('culprit', ['sleep', '1d']);
    expect(await registrationPort()).toBe(true);
    expect((await drover.run(['sandbox', 'contain', 'culprit', '--revoke', '--cut-network', '--reason', 'phones home'])).code).toBe(0);
    // Over the session, which stands: a contained sandbox can be looked into.
    expect(await registrationPort()).toBe(false);
    expect((await drover.run(['sandbox', 'release', 'culprit'])).code).toBe(0);
    await eventually('it has registered again', async () => {
      const { identity } = await drover.sandbox<{ identity: { verdict: string } }>('culprit');
      return identity.verdict === 'trusted';
    });
    expect(await registrationPort()).toBe(true);
  });

  test('only a release undoes it, over restarts of everything, and every refusal says who contained it, and why', async () => {
    const said = /contained: it is (paused|killed), by admin at 20.*"sends spam"/;
    const refused = async (...args: readonly string[]): Promise<void> => {
      const { code, stderr } = await drover.run(args);
      expect({ code, stderr }).toEqual({ code: expect.any(Number), stderr: expect.stringMatching(said) });
      expect(code, args.join(' ')).not.toBe(0);
    };
    expect((await drover.run(['sandbox', 'contain', 'culprit', '--pause', '--reason', 'sends spam'])).code).toBe(0);
    await refused('sandbox', 'resume', 'culprit');
    await refused('sandbox', 'start', 'culprit');
    await refused('exec', 'culprit', '--', 'true');
    for (const part of ['serve', 'agent'] as const) process.kill(await drover.pidOf(part), 'SIGKILL');
    await eventually('the control plane and the host are back', async () => {
      return (await drover.answers()) && (await drover.hosts<{ state: string }>())[0]?.state === 'ready';
    });
    await refused('sandbox', 'resume', 'culprit');
    const { id, state, containment } = await drover.sandbox<{ id: string; state: string; containment: unknown }>('culprit');
    expect({ state, containment }).toMatchObject({
      state: 'paused',
      containment: { paused: true, records: [{ action: 'pause', by: 'admin', reason: 'sends spam' }] },
    });
    for (const command of ['get', 'explain']) {
      expect((await drover.run(['sandbox', command, 'culprit'])).stdout).toMatch(/contained: +paused by admin .*sends spam/);
    }

    expect((await drover.run(['sandbox', 'contain', 'culprit', '--kill', '--reason', 'sends spam'])).code).toBe(0);
    await refused('sandbox', 'start', 'culprit');
    expect((await drover.run(['sandbox', 'release', 'culprit', '--pause'])).code).toBe(0);
    await refused('sandbox', 'start', 'culprit');
    expect((await drover.run(['sandbox', 'release', 'culprit'])).code).toBe(0);
    expect((await drover.exec('culprit', ['echo', 'here'])).stdout).toBe('here\n');
    await drover.saw(id, ['sandbox'], (types) => types.filter((type) => type === 'SandboxReleased').length === 4);
  });
});
