import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { initPort } from '@drover/init';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { execa } from 'execa';
import { eventually, TestDrover, tool, tracesOf } from '../harness/index.ts';

/** The gateway's address is the first of the pool. */
const [pool, gateway] = ['10.232.0.0/20', '10.232.0.1'];

/** The kinds of flood in flooding-init.ts. A sandbox for each sends it without end. */
const floods = ['drift', 'driftnotice', 'bigmsg', 'execflood'];

let drover: TestDrover;
let box: { readonly id: string; readonly address: string };

/** An exec in the sandbox with the mute init, started before the other tests. It ends within `initAnswerMs`. */
let muteExec: ReturnType<typeof drover.run>;

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', pool]);
  await Promise.all(['box', 'other', 'mute', ...floods].map(async (name) => await drover.begin(name, ['sleep', '1d'])));
  box = await drover.sandbox('box');
  hostile.push(await HostileInit.start('mute', 'mute'));
  muteExec = drover.run(['exec', 'mute', '--', 'true'], { timeoutMs: 120_000 });
});

afterAll(async () => {
  for (const peer of hostile) await peer.stop();
  const left = await tracesOf(drover);
  await drover[Symbol.asyncDispose]();
  expect(await left()).toEqual([]);
});

/**
 * A hostile init: a program in the sandbox's network namespace. A firewall rule redirects new connections to init's port to it. Root in a
 * namespace with network privileges could do the same. The rule disappears with the sandbox.
 */
class HostileInit {
  readonly #process: ReturnType<typeof spawnHostile>;

  private constructor(process: ReturnType<typeof spawnHostile>) {
    this.#process = process;
  }

  static async start(name: string, mode: string): Promise<HostileInit> {
    const { id } = await drover.sandbox<{ id: string }>(name);
    const pid = (await readFile(join(drover.data, 'host', 'sandboxes', id, 'init.pid'), 'utf8')).trim();
    const [cert, key] = [join(drover.directory, `${mode}.crt`), join(drover.directory, `${mode}.key`)];
    const self = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=hostile'];
    await tool('openssl', 'req', '-x509', ...self, '-keyout', key, '-out', cert);
    const namespace = ['-t', pid, '-n', '--'];
    const process = spawnHostile(namespace, [cert, key, id, mode]);
    await once(process.stdout, 'data');
    const redirect = 'add table ip hostile; add chain ip hostile in { type nat hook prerouting priority dstnat; }';
    await tool('nsenter', ...namespace, 'nft', `${redirect}; add rule ip hostile in tcp dport ${initPort} redirect to :${hostilePort}`);
    // Eviction ends the present session. The next dial reaches the hostile init.
    await succeeds('identity', 'evict', name);
    return new HostileInit(process);
  }

  async stop(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.#process;
  }
}

const hostilePort = 19_180;
const hostile: HostileInit[] = [];

function spawnHostile(namespace: readonly string[], args: readonly string[]) {
  const program = join(import.meta.dirname, '..', 'harness', 'flooding-init.ts');
  return execa('nsenter', [...namespace, process.execPath, '--conditions=development', program, String(hostilePort), ...args], {
    reject: false,
    stdin: 'ignore',
  });
}

async function succeeds(...args: readonly string[]): Promise<void> {
  const { code, stderr } = await drover.run(args);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
}

/** Runs a Python program in a sandbox as an unprivileged user, and returns the JSON that it prints. */
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

/** Measures the seconds, at most 60, until the peer closes a connection that sends nothing, or a byte each second after its beginning. */
const hold = `
import json, select, socket, sys, time
host, port, first = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
s = socket.create_connection((host, port), timeout=60)
began = time.monotonic()
try:
    if first: s.sendall(first)
    while time.monotonic() - began < 60:
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
  await once(socket, 'close', { signal: AbortSignal.timeout(60_000) }).catch(() => socket.destroy());
  clearInterval(drip);
  return (performance.now() - began) / 1_000;
}

test('every listener cuts a silent and a dripping peer at its limit, and serves others meanwhile', async () => {
  const { apiPort, linkPort } = JSON.parse(await readFile(join(drover.data, 'control-plane', 'server.json'), 'utf8')) as {
    apiPort: number;
    linkPort: number;
  };
  const silence = Buffer.alloc(0);
  // The beginnings of a ClientHello and of a request, neither of which ends.
  const [hello, head] = [Buffer.from('16030300ff01', 'hex'), Buffer.from('GET / HTTP/1.1\r\n')];
  const inside = async (port: number, first: Buffer): Promise<number> =>
    await inSandbox('box', hold, gateway, String(port), first.toString('hex'));
  /** Listener, limit in seconds according to docs/limits.md, and its peers. */
  const peers: readonly (readonly [string, number, Promise<number>])[] = [silence, hello].flatMap((first) => [
    ['the API', 10, holdFromHost('127.0.0.1', apiPort, first)],
    ['the host link', 15, holdFromHost('127.0.0.1', linkPort, first)],
    ["init's port", 10, holdFromHost(box.address, initPort, first)],
    ['the registration port', 10, inside(9181, first)],
    ['the egress proxy', 10, inside(3128, first === hello ? head : first)],
  ]);
  // A new sandbox needs all of them except the proxy: its host's link, init's port and the registration port.
  await drover.begin('newcomer', ['sleep', '1d']);
  expect((await drover.exec('newcomer', ['echo', 'here'])).stdout).toBe('here\n');
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
    await succeeds('sandbox', 'contain', 'culprit', '--revoke', '--cut-network');
    // The session stays, so that a person can inspect a contained sandbox.
    expect(await registrationPort()).toBe(false);
    await succeeds('sandbox', 'release', 'culprit');
    await eventually('the sandbox has registered again', async () => {
      const { identity } = await drover.sandbox<{ identity: { verdict: string } }>('culprit');
      return identity.verdict === 'trusted';
    });
    expect(await registrationPort()).toBe(true);
  });

  test('neither start nor resume undoes it', async () => {
    await drover.begin('held', ['sleep', '1d']);
    const state = async (): Promise<string> => (await drover.sandbox<{ state: string }>('held')).state;
    for (const [action, command, contained] of [
      ['--pause', 'resume', 'paused'],
      ['--kill', 'start', 'stopped'],
    ] as const) {
      await succeeds('sandbox', 'contain', 'held', action);
      await eventually(`it is ${contained}`, async () => (await state()) === contained);
      const { code, stdout } = await drover.run(['sandbox', command, 'held']);
      expect({ action, stdout, refused: code !== 0, state: await state() }).toEqual({
        action,
        stdout: '',
        refused: true,
        state: contained,
      });
    }
    await drover.remove('held');
  });

  test('only a release undoes it, across restarts of every part, and every refusal names the person and the reason', async () => {
    const refusal = /contained: it is (paused|killed), by admin at 20\S+: sends spam/;
    const refused = async (...args: readonly string[]): Promise<void> => {
      const { code, stderr } = await drover.run(args);
      expect({ code, stderr }).toEqual({ code: expect.any(Number), stderr: expect.stringMatching(refusal) });
      expect(code, args.join(' ')).not.toBe(0);
    };
    await succeeds('sandbox', 'contain', 'culprit', '--pause', '--reason', 'sends spam');
    await refused('sandbox', 'resume', 'culprit');
    await refused('sandbox', 'start', 'culprit');
    await refused('exec', 'culprit', '--', 'true');
    for (const part of ['serve', 'agent'] as const) process.kill(await drover.pidOf(part), 'SIGKILL');
    await eventually('the control plane responds and the host is ready', async () => {
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

    await succeeds('sandbox', 'contain', 'culprit', '--kill', '--reason', 'sends spam');
    await refused('sandbox', 'start', 'culprit');
    await succeeds('sandbox', 'release', 'culprit', '--pause');
    await refused('sandbox', 'start', 'culprit');
    await succeeds('sandbox', 'release', 'culprit');
    expect((await drover.exec('culprit', ['echo', 'here'])).stdout).toBe('here\n');
    await drover.saw(id, ['sandbox'], (types) => types.filter((type) => type === 'SandboxReleased').length === 4);
  });
});

test('flooded sessions delay no other session, and their sandboxes can be contained', async () => {
  await Promise.all(floods.map(async (mode) => hostile.push(await HostileInit.start(mode, mode))));
  for (const name of floods) {
    await eventually('the hostile init has the session', async () => {
      const { session, identity } = await drover.sandbox<{ session: { state: string }; identity: { verdict: string } }>(name);
      return session.state === 'connected' && identity.verdict === 'untrusted';
    });
  }
  const reading = new AbortController();
  const flooded = drover.drain('execflood', ['cat'], reading.signal);
  // The output exceeds a session's burst, so the rest is read at the session's rate.
  const largeBytes = 80 * 1024 * 1024;
  const large = drover.drain('other', ['head', '-c', String(largeBytes), '/dev/zero']);
  for (let i = 0; i < 5; i++) expect((await drover.exec('other', ['echo', 'here'])).stdout).toBe('here\n');
  expect(await large).toBe(largeBytes);
  for (const name of ['drift', 'driftnotice']) {
    const { id } = await drover.sandbox<{ id: string }>(name);
    await drover.saw(id, ['session'], (types) => types.includes('SessionThrottled'));
  }
  await succeeds('sandbox', 'contain', 'drift', '--cut-network', '--kill');
  reading.abort();
  expect(await flooded).toBeGreaterThan(0);
});

test('an exec in a sandbox whose init is mute ends with a clear error', async () => {
  const { code, stderr } = await muteExec;
  expect(code).not.toBe(0);
  expect(stderr).toMatch(/sandbox mute did not respond to the exec within 30 s/);
});
