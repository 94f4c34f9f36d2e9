import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { once } from 'node:events';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { containers, eventually, HostNetwork, SecondHost, TestDrover, tracesOf, type Finished } from './harness/index.ts';

interface HostJson {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly reason: string;
  readonly sandboxes: number;
}

interface SandboxJson {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly message: string;
  readonly hostName: string;
  readonly startCount: number;
}

/** Exactly one error and one hint on stderr. */
const oneSentence = /^drover: [^\n]+\n {2}hint: [^\n]+\n$/;
const forever = ['sleep', 'infinity'];
/** A command whose log shows its start, and that it keeps running. */
const clock = ['sh', '-c', 'echo began $$; while :; do date +%s.%N; sleep 0.2; done'];

let drover: TestDrover;
let network: HostNetwork;
let second: SecondHost;
let server: string;

const host = async (name: string): Promise<HostJson> => await drover.host<HostJson>(name);
const sandbox = async (name: string): Promise<SandboxJson> => await drover.sandbox<SandboxJson>(name);
const token = async (...args: readonly string[]): Promise<string> =>
  (await drover.json<{ token: string }>(['host', 'token', ...args])).token;

async function succeeds(args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await drover.run(args);
  expect({ args, code, stderr: code === 0 ? '' : stderr }).toEqual({ args, code: 0, stderr: '' });
  return stdout;
}

async function hostIs(name: string, state: string): Promise<HostJson> {
  return await eventually(`host ${name} is ${state}`, async () => {
    const row = await host(name);
    return row.state === state ? row : undefined;
  });
}

async function sandboxIs(name: string, state: string): Promise<SandboxJson> {
  return await eventually(`sandbox ${name} is ${state}`, async () => {
    const row = await sandbox(name);
    return row.state === state ? row : undefined;
  });
}

beforeAll(async () => {
  network = await HostNetwork.create('10.215.255');
  const address = network.controlPlaneAddress;
  const listening = ['--listen', `${address}:0`, '--public-host', address];
  const quick = ['--host-ttl', '6s', '--lost-grace', '2s'];
  drover = await TestDrover.start([...listening, ...quick, '--pool', '10.214.0.0/17', '--name', 'first']);
  second = new SecondHost(drover, network, 'second');
  server = /ready on (\S+)/.exec(drover.output)?.[1] ?? '';
  const { apiPort, linkPort } = JSON.parse(await readFile(join(drover.data, 'control-plane', 'server.json'), 'utf8')) as {
    apiPort: number;
    linkPort: number;
  };
  await network.open([apiPort, linkPort]);
});

afterAll(async () => {
  await drover.remove(...(await drover.sandboxes<SandboxJson>()).map(({ id }) => id));
  const left = await tracesOf(drover);
  await second[Symbol.asyncDispose]();
  await drover[Symbol.asyncDispose]();
  await network[Symbol.asyncDispose]();
  // removal leaves no trace of a sandbox.
  expect(await left()).toEqual([]);
});

describe('L-1 to L-3: joining', () => {
  const refused = (outcome: Finished, code: number, sentence: RegExp): void => {
    expect(outcome.stderr).toMatch(oneSentence);
    expect(outcome.stderr).toMatch(sentence);
    expect(outcome).toMatchObject({ code, stdout: '' });
  };
  let used: string;

  test('drover agent on a host that has not joined reports it', async () => {
    refused(await second.run(['agent', '--state', second.state]), 4, /has not joined a control plane/);
  });

  test('a malformed token is refused before any request is sent', async () => {
    refused(await second.join(server, 'drv1.nonsense'), 2, /not a join token/);
  });

  test('a token of another control plane: the CA does not match, and the token is not sent', async () => {
    const [version, , secret] = (await token()).split('.');
    refused(await second.join(server, `${version}.${'a'.repeat(64)}.${secret}`), 5, /did not make this join token/);
  });

  test('an expired token is refused', async () => {
    const { token: expired, expiresAt } = await drover.json<{ token: string; expiresAt: string }>(['host', 'token', '--ttl', '1s']);
    await eventually('the token expires', () => Date.now() > Date.parse(expiresAt));
    refused(await second.join(server, expired), 5, /refused the join token: it is unknown, used up or expired/);
  });

  test('an unknown token is refused in the same words as an expired one', async () => {
    const [version, fingerprint] = (await token()).split('.');
    refused(await second.join(server, `${version}.${fingerprint}.${'A'.repeat(43)}`), 5, /unknown, used up or expired/);
  });

  test('an absent control plane is reported as unreachable', async () => {
    refused(await second.join(`https://${network.hostAddress}:9`, await token()), 6, /cannot be reached/);
  });

  test('with the token that drover host token prints, the host joins and keeps its key to itself', async () => {
    used = await token('--label', 'disk=nvme');
    const outcome = await second.join(server, used, ['--name', 'second', '--label', 'place=far', '--pool', '10.215.0.0/17']);
    expect(outcome).toMatchObject({ code: 0, stderr: '' });
    expect(outcome.stdout).toMatch(/^drover: joined https:\/\/10\.215\.255\.1:\d+ as h-\w+\n$/);
    expect((await host('second')).state).toBe('joining');
  });

  test('a used token is refused to another machine', async () => {
    const other = join(drover.directory, 'other');
    refused(await second.run(['agent', 'join', server, '--token', used, '--state', other, '--no-run']), 5, /used up/);
  });

  test('drover agent connects, and host ls shows two ready hosts', async () => {
    await second.start();
    await hostIs('second', 'ready');
    const hosts = await drover.json<HostJson[]>(['host', 'ls']);
    expect(hosts.map(({ name, state }) => `${name} ${state}`).toSorted()).toEqual(['first ready', 'second ready']);
    expect(await drover.json(['host', 'get', 'second'])).toMatchObject({ labels: { disk: 'nvme', place: 'far' }, runtimes: ['oci'] });
  });

  test('a second agent on the same state directory is refused', async () => {
    refused(await second.run(['agent', '--state', second.state]), 4, /already/);
  });
});

describe('a host that can only dial out', () => {
  test('this machine can open no connection to it, even to an open port', async () => {
    const script = 'require("net").createServer(c => c.end("there")).listen(0, function () { console.log(this.address().port) })';
    const [file, ...args] = network.command(process.execPath, '-e', script);
    const listener = execa(file, args, { reject: false });
    try {
      const [line] = (await once(listener.stdout, 'data')) as [Buffer];
      const port = Number(String(line));
      const [bash, ...look] = network.command('bash', '-c', `exec 3<>/dev/tcp/${network.hostAddress}/${port}; cat <&3`);
      expect((await execa(bash, look)).stdout).toBe('there');
      const outcome = await new Promise<string>((resolve) => {
        const socket = connect({ host: network.hostAddress, port, timeout: 700 });
        for (const event of ['connect', 'timeout', 'error']) socket.once(event, () => resolve(event));
        socket.once('close', () => undefined);
        socket.once('timeout', () => socket.destroy());
      });
      expect(outcome).toBe('timeout');
    } finally {
      listener.kill('SIGKILL');
      await listener;
    }
  });

  test('a sandbox runs on it, and run returns its command’s status', async () => {
    const { code, stdout } = await drover.run(['run', '--rm', '--host', 'second', 'host', '--', 'sh', '-c', 'echo far away; exit 9']);
    expect({ code, stdout }).toEqual({ code: 9, stdout: 'far away\n' });
  });

  test('exec, stdin, logs, cp both ways, attach and forward reach it through the link', async () => {
    await drover.begin('far', clock, { host: 'second' });
    expect((await sandbox('far')).hostName).toBe('second');
    expect(await drover.run(['exec', 'far', '--', 'cat'], { input: 'through\n' })).toMatchObject({ code: 0, stdout: 'through\n' });
    expect((await drover.run(['exec', 'far', '--', 'sh', '-c', 'exit 3'])).code).toBe(3);
    expect(await succeeds(['logs', 'far'])).toMatch(/^began \d+\n(\d+\.\d+\n)*/);

    const there = join(drover.directory, 'there');
    const back = join(drover.directory, 'back');
    await writeFile(there, 'a file\n');
    await succeeds(['cp', there, 'far:/tmp/there']);
    await succeeds(['cp', 'far:/tmp/there', back]);
    expect(await readFile(back, 'utf8')).toBe('a file\n');

    const attached = drover.spawn(['attach', 'far']);
    let shown = '';
    attached.stdout.on('data', (data: Buffer) => (shown += String(data)));
    await eventually('attach prints earlier and new output', () => shown.split('\n').length > 4);
    // The CLI would forward any other signal to the command.
    attached.kill('SIGKILL');
    await attached;

    await succeeds(['exec', '-d', 'far', '--', 'python3', '-c', portProgram]);
    const local = await freePort();
    const forward = drover.spawn(['forward', 'far', `${local}:8123`]);
    try {
      const answer = await eventually('forward reaches the port', async () => await ask(local));
      expect(answer).toBe('from the sandbox');
    } finally {
      forward.kill('SIGTERM');
      await forward;
    }
  });

  test('I-39: forward half-closes both ways: an end keeps sending after its peer has ended', async () => {
    await succeeds(['exec', '-d', 'far', '--', 'python3', '-c', halfProgram]);
    const local = await freePort();
    const forward = drover.spawn(['forward', 'far', `${local}:8124`]);
    try {
      const socket = await eventually('forward listens', async () => await dial(local));
      // This side ends first. The program replies to its input and ends after that.
      socket.end('first');
      expect(await text(socket)).toBe('heard first');
      // The program ends first and keeps reading.
      const second = await dial(local);
      let received = '';
      second?.on('data', (data) => (received += String(data)));
      if (second !== undefined) await once(second, 'end');
      expect(received).toBe('that was all');
      second?.end('said after its end');
      await eventually('the program has received the input', async () => {
        const { stdout } = await drover.exec('far', ['cat', '/tmp/heard']);
        return stdout === 'said after its end';
      });
    } finally {
      forward.kill('SIGTERM');
      await forward;
    }
  });

  test('network policy is enforced on it: default deny, with its own gateway', async () => {
    const url = `http://${network.controlPlaneAddress}/`;
    expect((await drover.exec('far', ['curl', '-s', url])).stdout).toContain('egress-denied');
    const past = await drover.exec('far', ['curl', '-s', '-m', '1', '--noproxy', '*', url]);
    // curl's status: 28 for no response, 7 for no route.
    expect([7, 28]).toContain(past.code);
    const env = await drover.exec('far', ['printenv', 'HTTP_PROXY']);
    expect(env.stdout).toContain('10.215.0.1');
  });
});

describe('L-24: placement', () => {
  const placed = ['p1', 'p2', 'p3', 'p4'];

  test('sandboxes spread across the hosts', async () => {
    await drover.remove('far');
    for (const name of placed) await drover.create(name, forever);
    const where = await Promise.all(placed.map(async (name) => (await sandbox(name)).hostName));
    expect(where.toSorted()).toEqual(['first', 'first', 'second', 'second']);
    await drover.remove(...placed);
  });

  test('a label chooses a host, also a label from its join token', async () => {
    for (const label of ['place=far', 'disk=nvme']) {
      const name = `at-${label.split('=')[0]}`;
      await succeeds(['run', '-d', '--name', name, '--host-label', label, 'host', '--', 'sleep', 'infinity']);
      expect((await sandbox(name)).hostName).toBe('second');
      await drover.remove(name);
    }
  });

  test('an unknown host is refused in one sentence', async () => {
    const { code, stderr } = await drover.run(['run', '--host', 'third', 'host', '--', 'true']);
    expect(code).toBe(125);
    expect(stderr).toMatch(oneSentence);
  });

  test('L-27: cordon excludes a host from placement, and a waiting sandbox reports why; uncordon admits it', async () => {
    expect(await succeeds(['host', 'cordon', 'second'])).toBe('second: cordoned\n');
    for (const name of ['c1', 'c2']) {
      await drover.create(name, forever);
      expect((await sandbox(name)).hostName).toBe('first');
    }
    await drover.create('c3', forever, { host: 'second' });
    expect(await sandbox('c3')).toMatchObject({ state: 'pending', message: expect.stringContaining('second: it is cordoned') as string });
    await succeeds(['host', 'uncordon', 'second']);
    await sandboxIs('c3', 'running');
    await drover.remove('c1', 'c2', 'c3');
  });

  test('L-27: drain moves sandboxes to the other host, reports its progress, and empties the host', async () => {
    await succeeds(['host', 'cordon', 'first']);
    for (const name of ['d1', 'd2']) await drover.begin(name, forever);
    await succeeds(['host', 'uncordon', 'first']);
    const { code, stdout, stderr } = await drover.run(['host', 'drain', 'second']);
    expect({ code, stdout }).toEqual({ code: 0, stdout: 'second: drained\n' });
    expect(stderr).toMatch(/2 to move/);
    expect(stderr).toMatch(/d1 moves to another host/);
    for (const name of ['d1', 'd2']) expect((await sandboxIs(name, 'running')).hostName).toBe('first');
    await eventually('its containers are deleted', async () => (await containers(second.state)).length === 0);
    // The reported state follows the actual one.
    await eventually('the control plane shows it empty', async () => (await host('second')).sandboxes === 0);
    expect(await host('second')).toMatchObject({ state: 'draining', sandboxes: 0 });
    await drover.remove('d1', 'd2');
    expect(await succeeds(['host', 'uncordon', 'second'])).toBe('second: ready\n');
  });

  test('L-27: drain names sandboxes that cannot move and leaves them running; with --stop it stops them', async () => {
    await drover.begin('stays', forever, { host: 'second' });
    const kept = await drover.run(['host', 'drain', 'second']);
    expect(kept.stderr).toMatch(/stays/);
    expect(kept).toMatchObject({ code: 4, stdout: '' });
    expect((await sandbox('stays')).state).toBe('running');
    expect(await drover.run(['host', 'drain', '--stop', 'second'])).toMatchObject({ code: 0, stdout: 'second: drained\n' });
    expect((await sandbox('stays')).state).toBe('stopped');
    await drover.remove('stays');
    await succeeds(['host', 'uncordon', 'second']);
  });
});

describe('L-10, L-26: a link that is cut', () => {
  test('the host goes down, its sandboxes are lost after the grace, and a reconnect adopts them without a restart', async () => {
    await drover.begin('cut', clock, { host: 'second' });
    const began = await eventually('the command prints', async () => /^began .*$/m.exec(await drover.logs('cut'))?.[0]);
    const cutAt = Date.now();
    await network.cut();
    try {
      expect((await hostIs('second', 'down')).reason).toMatch(/nothing was heard of it/);
      // L-15: no command waits for the host.
      const exec = await drover.run(['host', 'ls']);
      expect(exec.stdout).toMatch(/second.*down/);
      expect((await sandboxIs('cut', 'lost')).message).not.toBe('');
    } finally {
      await network.mend();
    }
    const cutSeconds = (Date.now() - cutAt) / 1000;
    await hostIs('second', 'ready');
    expect((await sandboxIs('cut', 'running')).startCount).toBe(1);
    const log = await drover.logs('cut');
    expect(log.match(/began/g)).toHaveLength(1);
    expect(log.split('\n')[0]).toBe(began);
    // The command kept writing during the cut.
    const times = log.split('\n').slice(1, -1).map(Number);
    const gaps = times.slice(1).map((time, index) => time - (times[index] ?? 0));
    expect(Math.max(...gaps)).toBeLessThan(cutSeconds / 2);
    expect(await drover.exec('cut', ['echo', 'here'])).toMatchObject({ code: 0, stdout: 'here\n' });
    await drover.remove('cut');
  });

  test('a sandbox that is removed while the host is disconnected is deleted when the host reconnects', async () => {
    await drover.begin('gone', forever, { host: 'second' });
    expect(await second.ended('SIGINT')).toBe(0);
    await hostIs('second', 'down');
    expect(await containers(second.state)).toHaveLength(1);
    await succeeds(['sandbox', 'rm', '--force', '--no-wait', 'gone']);
    await second.start();
    await eventually('its container is deleted', async () => (await containers(second.state)).length === 0);
    await eventually('its row is deleted', async () => !(await drover.sandboxes()).some(({ name }) => name === 'gone'));
  });
});

describe('L-4: drover host rm', () => {
  let identity: string;

  test('is refused while the host holds sandboxes', async () => {
    await drover.begin('held', forever, { host: 'second' });
    const { code, stderr } = await drover.run(['host', 'rm', 'second']);
    expect(code).toBe(4);
    expect(stderr).toMatch(oneSentence);
    expect(stderr).toMatch(/still holds 1 sandbox/);
  });

  test('with --force it closes the stream; the agent reports it, removes its sandboxes and ends', async () => {
    identity = join(drover.directory, 'identity-of-before');
    await mkdir(identity);
    await execa('cp', ['-a', join(second.state, 'identity'), identity]);
    await succeeds(['host', 'rm', '--force', 'second']);
    expect(await second.ended()).toBe(5);
    expect(second.output).toMatch(/drover: this host was removed from its control plane; its 1 sandbox/);
    expect(await containers(second.state)).toEqual([]);
    expect((await drover.run(['host', 'get', 'second'])).code).toBe(3);
    expect((await sandbox('held')).state).toBe('lost');
    await drover.remove('held');
  });

  test('the certificate of a removed host is refused, and its agent gives up', async () => {
    await rename(join(identity, 'identity'), join(second.state, 'identity'));
    second.startUnchecked();
    expect(await second.ended()).toBe(5);
    expect(second.output).toMatch(/drover: this host was removed/);
  });

  test('the machine joins again as a new host with a new token', async () => {
    expect(await second.join(server, await token())).toMatchObject({ code: 0 });
    await second.start();
    await hostIs('second', 'ready');
    expect(await drover.run(['run', '--rm', '--host', 'second', 'host', '--', 'echo', 'again'])).toMatchObject({
      code: 0,
      stdout: 'again\n',
    });
  });

  test('the host offers the CPUs of --cpus, and accepts sandboxes accordingly', async () => {
    await second.ended('SIGINT');
    await second.start(['--cpus', '64']);
    await hostIs('second', 'ready');
    expect(await drover.host('second')).toMatchObject({ capacity: { cpuMillis: 64_000 } });
    expect(await succeeds(['run', '--rm', '--host', 'second', '--cpus', '33', 'host', '--', 'echo', 'room'])).toBe('room\n');
  });

  test('an empty host is removed without --force', async () => {
    await succeeds(['host', 'rm', 'second']);
    expect(await second.ended()).toBe(5);
  });
});

const portProgram = `
import socket
s = socket.create_server(("127.0.0.1", 8123))
while True:
    c, _ = s.accept()
    c.sendall(b"from the sandbox")
    c.close()
`;

/** Serves two connections: the client ends the first one first, the program ends the second one first. */
const halfProgram = `
import os, socket
def heard(c):
    data = b""
    while part := c.recv(4096):
        data += part
    return data
s = socket.create_server(("127.0.0.1", 8124))
c, _ = s.accept()
c.sendall(b"heard " + heard(c))
c.close()
c, _ = s.accept()
c.sendall(b"that was all")
c.shutdown(socket.SHUT_WR)
with open("/tmp/heard.new", "wb") as f:
    f.write(heard(c))
os.rename("/tmp/heard.new", "/tmp/heard")
`;

/** Opens a connection that can be half-closed; undefined when the port has no listener. */
async function dial(port: number): Promise<Socket | undefined> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  try {
    await once(socket, 'connect');
    return socket;
  } catch {
    return undefined;
  }
}

/** Returns the output of a listener on a port of this machine; undefined when the port has no listener. */
async function ask(port: number): Promise<string | undefined> {
  return await new Promise((resolve) => {
    let received = '';
    const socket = connect(port, '127.0.0.1');
    socket.on('data', (data) => (received += String(data)));
    socket.on('error', () => resolve(undefined));
    socket.on('close', () => resolve(received === '' ? undefined : received));
  });
}

async function freePort(): Promise<number> {
  const taken = createServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  const { port } = taken.address() as AddressInfo;
  taken.close();
  await once(taken, 'close');
  return port;
}
