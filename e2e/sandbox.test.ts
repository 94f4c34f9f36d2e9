import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, networkTag, repository, Terminal, TestDrover, traces } from './harness/index.ts';

interface SandboxJson {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly exitCode?: number;
}

interface EventJson {
  readonly id: number;
  readonly kind: string;
  readonly type: string;
  readonly subject: string;
}

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const lines = (count: number): string => Array.from({ length: count }, (_, i) => `${i + 1}\n`).join('');

/** An echo service: each connection returns its input in capitals after the client has half-closed it. */
const capitals = `
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self): self.wfile.write(self.rfile.read().upper())
class Server(socketserver.ThreadingTCPServer): request_queue_size = 64
Server(('127.0.0.1', 7000), Handler).serve_forever()
`;

describe('R-3: sandbox commands', () => {
  let drover: TestDrover;
  let tag: string;

  const get = async (name: string): Promise<SandboxJson> => await drover.sandbox<SandboxJson>(name);
  const ok = async (...args: readonly string[]): Promise<string> => {
    const { code, stdout, stderr } = await drover.run(args);
    if (code !== 0) throw new Error(`drover ${args.join(' ')} ended with ${code}: ${stderr}`);
    return stdout;
  };
  const local = (name: string): string => join(drover.directory, name);

  beforeAll(async () => {
    drover = await TestDrover.start(['--pool', '10.217.0.0/16']);
    tag = await networkTag('10.217.0.1');
    await drover.begin('work', ['sleep', 'infinity']);
  });
  afterAll(async () => {
    await drover[Symbol.asyncDispose]();
    // removal leaves no trace of a sandbox.
    expect((await traces()).filter((trace) => trace.includes(tag) || trace.startsWith(drover.directory))).toEqual([]);
  });

  describe('the life of a sandbox', () => {
    test('create, get, ls, pause, resume, stop, start and rm', async () => {
      expect(await ok('sandbox', 'create', '--name', 'life', 'host', '--', 'sh', '-c', 'echo run >> /var/tmp/runs; sleep 600')).toBe(
        'life\n',
      );
      expect(await ok('sandbox', 'wait', '--for', 'running', 'life')).toMatch(/^running/);
      const runs = async (): Promise<string> => (await drover.exec('life', ['cat', '/var/tmp/runs'])).stdout;
      await eventually('its command has run once', async () => (await runs()) === 'run\n');
      expect((await drover.json<SandboxJson[]>(['sandbox', 'ls'])).map(({ name }) => name)).toContain('life');

      await ok('sandbox', 'pause', 'life');
      expect((await get('life')).state).toBe('paused');
      await ok('sandbox', 'resume', 'life');
      expect((await get('life')).state).toBe('running');
      expect(await runs()).toBe('run\n');

      await ok('sandbox', 'stop', 'life');
      expect(await get('life')).toMatchObject({ state: 'stopped', exitCode: 143 });
      await ok('sandbox', 'start', 'life');
      await eventually('its files are kept, and its command has run twice', async () => (await runs()) === 'run\nrun\n');

      const refused = await drover.run(['sandbox', 'rm', 'life']);
      expect(refused.code).not.toBe(0);
      expect(refused.stderr).toMatch(/--force/);
      await ok('sandbox', 'rm', '--force', 'life');
      expect((await drover.run(['sandbox', 'get', 'life'])).stderr).toMatch(/there is no sandbox "life"/);
    });

    test('a taken name is refused, and no partial sandbox remains', async () => {
      const { code, stderr } = await drover.run(['run', '-d', '--name', 'work', 'host', '--', 'true']);
      expect(code).not.toBe(0);
      expect(stderr).toMatch(/there is a sandbox named work already\n {2}hint: /);
      expect((await drover.json<SandboxJson[]>(['sandbox', 'ls'])).filter(({ name }) => name === 'work')).toHaveLength(1);
    });

    test('I-37: stop sends SIGTERM, and SIGKILL after the grace', async () => {
      const script = (onTerm: string): string => `trap '${onTerm}' TERM; echo ready; while :; do sleep 0.05; done`;
      for (const [name, onTerm] of [
        ['polite', 'echo bye; exit 5'],
        ['stubborn', 'echo no'],
      ] as const) {
        await drover.begin(name, ['sh', '-c', script(onTerm)]);
        await eventually(`${name} is ready`, async () => (await drover.logs(name)) === 'ready\n');
        await ok('sandbox', 'stop', '--grace', '1s', name);
      }
      expect(await get('polite')).toMatchObject({ state: 'stopped', exitCode: 5 });
      expect(await drover.logs('polite')).toBe('ready\nbye\n');
      expect(await get('stubborn')).toMatchObject({ state: 'stopped', exitCode: 137 });
      expect(await drover.logs('stubborn')).toBe('ready\nno\n');
    });

    test('wait returns the status of the command when the command exits', async () => {
      await drover.begin('timed', ['sh', '-c', 'until [ -e /var/tmp/go ]; do sleep 0.05; done; exit 6']);
      const waiting = drover.spawn(['sandbox', 'wait', 'timed']);
      let ended = false;
      void waiting.then(() => (ended = true));
      expect((await drover.run(['sandbox', 'wait', '--timeout', '200ms', 'timed'])).code).not.toBe(0);
      expect(ended).toBe(false);
      await drover.exec('timed', ['touch', '/var/tmp/go']);
      expect((await waiting).exitCode).toBe(6);
    });
  });

  describe('I-39: exec', () => {
    test.each([
      ['exit 0', 0],
      ['exit 3', 3],
      ['kill -KILL $$', 137],
    ])('%s: status %d', async (script, status) => {
      expect((await drover.run(['exec', 'work', '--', 'sh', '-c', script])).code).toBe(status);
    });

    test('a missing program has status 127, a program that cannot be executed 126', async () => {
      expect((await drover.run(['exec', 'work', '--', 'no-such-program'])).code).toBe(127);
      expect((await drover.run(['exec', 'work', '--', '/etc/passwd'])).code).toBe(126);
    });

    test('passes stdin, user, working directory and environment', async () => {
      const args = ['exec', '-u', 'nobody', '-w', '/usr', '-e', 'A=1 2', 'work', '--', 'sh', '-c', 'id -un; pwd; echo "$A"; cat'];
      expect(await drover.run(args, { input: 'given\n' })).toEqual({ code: 0, stdout: 'nobody\n/usr\n1 2\ngiven\n', stderr: '' });
    });

    test('concurrent execs keep their own output and status', async () => {
      const results = await Promise.all(
        Array.from(
          { length: 8 },
          async (_, i) => await drover.run(['exec', 'work', '--', 'sh', '-c', `seq ${i} 2000 | tail -1; echo ${i}; exit ${i}`]),
        ),
      );
      expect(results).toEqual(results.map((_, i) => ({ code: i, stdout: `2000\n${i}\n`, stderr: '' })));
    });

    test('a terminal has its size, follows a resize and passes Ctrl-C', async () => {
      using terminal = new Terminal(drover, ['exec', '-t', 'work', '--', 'sh'], { columns: 90, rows: 30 });
      terminal.type('stty size\r');
      await terminal.shows('30 90');
      terminal.resize(110, 35);
      await eventually('the terminal has the new size', () => {
        terminal.type('stty size\r');
        return terminal.output.includes('35 110');
      });
      terminal.type("echo going'' to sleep; sleep 1000\r");
      await terminal.shows('going to sleep');
      terminal.type('\u0003');
      terminal.type('echo status $?\r');
      await terminal.shows('status 130');
      terminal.type('exit 8\r');
      expect(await terminal.exit()).toBe(8);
    });

    test('a signal to the CLI is forwarded to the process', async () => {
      const script = "trap 'echo got it; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
      const exec = drover.spawn(['exec', 'work', '--', 'sh', '-c', script]);
      let output = '';
      exec.stdout.on('data', (data: Buffer) => (output += data.toString()));
      await eventually('it runs', () => output.includes('ready'));
      exec.kill('SIGTERM');
      expect((await exec).exitCode).toBe(4);
      expect(output).toBe('ready\ngot it\n');
    });

    test('I-40: an exec outlives a killed CLI, and attach by its id neither loses nor repeats output', async () => {
      const script = 'i=1; while [ $i -le 400 ]; do echo $i; i=$((i+1)); sleep 0.005; done; exit 11';
      const id = (await ok('exec', '-d', 'work', '--', 'sh', '-c', script)).trim();
      const first = drover.spawn(['exec', '--attach', id, 'work']);
      let seen = '';
      first.stdout.on('data', (data: Buffer) => (seen += data.toString()));
      await eventually('the exec prints', () => seen.includes('\n20\n'));
      // The launcher replaces itself with node, so this pid is the CLI's.
      first.kill('SIGKILL');
      await first;
      const again = await drover.run(['exec', '--attach', id, 'work']);
      expect(again).toMatchObject({ code: 11, stdout: lines(400) });
    });

    test('I-40: an exec and its CLI survive a killed control plane without a gap or a repeat in the output', async () => {
      const script = 'i=1; while [ $i -le 600 ]; do echo $i; i=$((i+1)); sleep 0.005; done; exit 12';
      const exec = drover.spawn(['exec', '-n', 'work', '--', 'sh', '-c', script]);
      let seen = '';
      exec.stdout.on('data', (data: Buffer) => (seen += data.toString()));
      await eventually('the exec prints', () => seen.includes('\n20\n'));
      process.kill(await drover.pidOf('serve'), 'SIGKILL');
      const { exitCode } = await exec;
      expect(seen).toBe(lines(600));
      expect(exitCode).toBe(12);
      await eventually('the API responds', async () => await drover.answers());
    });
  });

  test('two concurrent clients of attach see the same output and status', async () => {
    await ok('run', '-d', '-i', '--name', 'shared', 'host', '--', 'sh', '-c', 'read x; echo "got $x"; exit 3');
    const attached = [drover.spawn(['attach', 'shared']), drover.spawn(['attach', '-n', 'shared'])] as const;
    attached[0].stdin.write('a line\n');
    for (const result of await Promise.all(attached)) expect(result).toMatchObject({ exitCode: 3, stdout: 'got a line\n' });
  });

  describe('logs', () => {
    test('logs prints all lines or the last ones, and separates stdout from stderr, of a running and of a stopped sandbox', async () => {
      await drover.begin('talks', ['sh', '-c', 'seq 1 499; echo aside >&2; echo 500; read x < /dev/zero; sleep 600']);
      const check = async (): Promise<void> => {
        expect(await drover.run(['logs', 'talks'])).toEqual({ code: 0, stdout: lines(500), stderr: 'aside\n' });
        const tail = await drover.run(['logs', '--tail', '3', 'talks']);
        expect([tail.stdout, tail.stderr]).toEqual(['499\n500\n', 'aside\n']);
      };
      await eventually('the log is complete', async () => (await drover.logs('talks')) === lines(500));
      await check();
      await drover.stop('talks', 100);
      await check();
    });

    test('-f follows across a stop and ends with the log', async () => {
      const script = "trap 'echo last; exit 0' TERM; i=1; while :; do echo $i; i=$((i+1)); sleep 0.02; done";
      await drover.begin('chatty', ['sh', '-c', script]);
      const following = drover.spawn(['logs', '-f', 'chatty']);
      let seen = '';
      following.stdout.on('data', (data: Buffer) => (seen += data.toString()));
      await eventually('logs -f prints', () => seen.includes('\n30\n'));
      await drover.stop('chatty');
      expect((await following).exitCode).toBe(0);
      const count = seen.split('\n').length - 2;
      expect(seen).toBe(`${lines(count)}last\n`);
      expect(await drover.logs('chatty')).toBe(seen);
    });
  });

  describe('cp', () => {
    test('copies a large file in and out, byte for byte, with its mode', async () => {
      const bytes = randomBytes(20 * 1024 * 1024);
      await writeFile(local('large'), bytes, { mode: 0o750 });
      await ok('cp', local('large'), 'work:/var/tmp/large');
      const inside = await drover.exec('work', ['sh', '-c', 'sha256sum < /var/tmp/large; stat -c %a /var/tmp/large']);
      expect(inside.stdout).toBe(`${sha256(bytes)}  -\n750\n`);
      await ok('cp', 'work:/var/tmp/large', local('back'));
      expect(sha256(await readFile(local('back')))).toBe(sha256(bytes));
    });

    test('copies a directory with links, empty files and names with spaces in and out', async () => {
      const tree = local('tree');
      await mkdir(join(tree, 'a dir'), { recursive: true });
      await writeFile(join(tree, 'a dir', 'file'), 'content\n');
      await writeFile(join(tree, 'empty'), '');
      await symlink('a dir/file', join(tree, 'link'));
      await ok('cp', tree, 'work:/var/tmp/');
      const inside = await drover.exec('work', ['sh', '-c', 'cd /var/tmp/tree && cat link && readlink link && wc -c < empty']);
      expect(inside.stdout).toBe('content\na dir/file\n0\n');
      await mkdir(local('out'));
      await ok('cp', 'work:/var/tmp/tree', local('out'));
      await execa('diff', ['-r', '--no-dereference', tree, join(local('out'), 'tree')]);
    });

    test('- is a tar stream on stdin and stdout', async () => {
      await mkdir(local('packed'));
      await writeFile(join(local('packed'), 'one'), 'in a tar\n');
      const script = 'tar -C "$2" -c one | "$1" cp - work:/var/tmp && "$1" cp work:/var/tmp/one - | tar -xO';
      const { stdout } = await execa('sh', ['-c', script, 'sh', join(repository, 'drover'), local('packed')], { env: drover.environment });
      expect(stdout).toBe('in a tar');
    });

    test('a missing path is one sentence on either side', async () => {
      const there = await drover.run(['cp', 'work:/nowhere/at-all', local('x')]);
      expect(there.code).not.toBe(0);
      expect(there.stderr).toMatch(/^drover: .*\/nowhere\/at-all.*\n/);
      const here = await drover.run(['cp', '/nowhere/at-all', 'work:/var/tmp/x']);
      expect(here.code).not.toBe(0);
      expect(here.stderr).toMatch(/^drover: \/nowhere\/at-all cannot be read/);
    });

    test('a device is refused in both directions', async () => {
      for (const argv of [
        ['cp', 'work:/dev/zero', join(drover.directory, 'zero')],
        ['cp', '/dev/zero', 'work:/tmp/zero'],
      ]) {
        const { code, stderr } = await drover.run(argv);
        expect(code).toBe(4);
        expect(stderr).toContain('/dev/zero is a device: it cannot be copied');
      }
    });
  });

  test('forward: concurrent connections each run to their end, and the caller can half-close them', async () => {
    await ok('exec', '-d', 'work', '--', 'python3', '-c', capitals);
    const forward = drover.spawn(['forward', 'work', '0:7000']);
    let output = '';
    forward.stdout.on('data', (data: Buffer) => (output += data.toString()));
    const port = Number(await eventually('it listens', () => /forwarding 127\.0\.0\.1:(\d+)/.exec(output)?.[1]));
    const ask = async (bytes: Buffer): Promise<Buffer> => {
      const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
      socket.end(bytes);
      return await buffer(socket);
    };
    await eventually('the server in the sandbox responds', async () => (await ask(Buffer.from('x'))).toString() === 'X');
    const sent = Array.from({ length: 20 }, (_, i) => Buffer.from(`connection ${i} `.repeat(10_000)));
    const received = await Promise.all(sent.map(ask));
    expect(received.map(sha256)).toEqual(sent.map((bytes) => sha256(Buffer.from(bytes.toString().toUpperCase()))));
    forward.kill('SIGINT');
    await forward;
  });

  describe('events', () => {
    test('lists every event of a sandbox in order, and --since continues without a gap or a repeat', async () => {
      await ok('run', '--rm', '--name', 'brief', 'host', '--', 'true');
      const all = (await ok('events', '-o', 'json'))
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as EventJson);
      const ids = all.map(({ id }) => id);
      expect(ids).toEqual(ids.toSorted((a, b) => a - b));
      expect(new Set(ids).size).toBe(ids.length);
      const middle = all[Math.floor(all.length / 2)]?.id ?? 0;
      const rest = (await ok('events', '--since', String(middle), '-o', 'json'))
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as EventJson);
      expect(rest.slice(0, all.length - all.findIndex(({ id }) => id === middle) - 1)).toEqual(
        all.slice(all.findIndex(({ id }) => id === middle) + 1),
      );
      const hosts = (await ok('events', '--kind', 'host', '-o', 'json'))
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as EventJson);
      expect(new Set(hosts.map(({ kind }) => kind))).toEqual(new Set(['host']));
    });

    test('-f prints events as they happen, and none twice after a killed control plane', async () => {
      const following = drover.spawn(['events', '-f', '--since', '0', '--kind', 'sandbox', '-o', 'json']);
      let output = '';
      following.stdout.on('data', (data: Buffer) => (output += data.toString()));
      const events = (): EventJson[] =>
        output
          .split('\n')
          .slice(0, -1)
          .map((line) => JSON.parse(line) as EventJson);
      const removed = async (name: string): Promise<void> => {
        const { id } = await drover.begin<SandboxJson>(name, ['true']);
        await drover.remove(name);
        await eventually(`its removal is printed`, () => events().some(({ type, subject }) => type === 'SandboxDeleted' && subject === id));
      };
      await removed('before');
      process.kill(await drover.pidOf('serve'), 'SIGKILL');
      await eventually('the API responds', async () => await drover.answers());
      await eventually('the host is ready', async () => (await drover.hosts<{ state: string }>()).every(({ state }) => state === 'ready'));
      await removed('after');
      following.kill('SIGINT');
      await following;
      const stored = (await ok('events', '--kind', 'sandbox', '-o', 'json'))
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as EventJson);
      const printed = events();
      expect(printed).toEqual(stored.slice(0, printed.length));
    });
  });

  test('-o json parses for every command, and its field names are stable', async () => {
    const sandbox = [
      'address containment createdAt desiredState exitCode exitSignal finishedAt generation hint hostId hostName id identity imageDigest init labels message name outOfMemory',
      'project reason runtime session spec startCount startedAt state',
    ]
      .join(' ')
      .split(' ');
    // The API leaves an optional field out while it has no value.
    const optional = new Set(['exitCode', 'finishedAt', 'startedAt']);
    const keys = async (...args: readonly string[]): Promise<string[]> => {
      const value = await drover.json<object | object[]>(args);
      return Object.keys(Array.isArray(value) ? (value[0] ?? {}) : value).toSorted();
    };
    const required = sandbox.filter((key) => !optional.has(key));
    const running = sandbox.filter((key) => key !== 'exitCode' && key !== 'finishedAt');
    expect(await keys('sandbox', 'get', 'work')).toEqual(running);
    for (const args of [
      ['run', '-d', '--name', 'js', 'host', '--', 'sleep', '600'],
      ['sandbox', 'pause', 'js'],
      ['sandbox', 'resume', 'js'],
      ['sandbox', 'stop', 'js'],
      ['sandbox', 'start', 'js'],
      ['sandbox', 'rm', '--force', 'js'],
    ]) {
      const found = await keys(...args);
      expect({
        args,
        missing: required.filter((key) => !found.includes(key)),
        more: found.filter((key) => !sandbox.includes(key)),
      }).toEqual({
        args,
        missing: [],
        more: [],
      });
    }
    // `sandbox wait` ends with the status of the command.
    const waited = await drover.run(['sandbox', 'wait', 'polite', '-o', 'json']);
    expect(waited.code).toBe(5);
    expect(Object.keys(JSON.parse(waited.stdout) as object).toSorted()).toEqual(sandbox);
    expect(await keys('exec', '-d', 'work', '--', 'true')).toEqual(['execId', 'pid']);
    await writeFile(local('small'), 'x');
    expect(await keys('cp', local('small'), 'work:/var/tmp/small')).toEqual(['bytes', 'entries', 'leftOut', 'leftOutCount']);
    expect(await keys('host', 'ls')).toEqual(expect.arrayContaining(['id', 'labels', 'name', 'state']));
    const [event] = (await ok('events', '-o', 'json')).split('\n');
    expect(Object.keys(JSON.parse(event ?? '') as object).toSorted()).toEqual(['data', 'id', 'kind', 'lost', 'subject', 'time', 'type']);
    const [log] = (await ok('logs', '--tail', '1', 'talks', '-o', 'json')).split('\n');
    expect(Object.keys(JSON.parse(log ?? '') as object).toSorted()).toEqual(['data', 'stream', 'time']);
  });

  test('a port in use is one sentence', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    await eventually('it listens', () => server.listening);
    const address = server.address();
    const port = typeof address === 'object' ? address?.port : undefined;
    const { code, stderr } = await drover.run(['forward', 'work', `${port}:7000`]);
    server.close();
    expect(code).not.toBe(0);
    expect(stderr).toMatch(new RegExp(`^drover: 127\\.0\\.0\\.1:${port} is in use by another program\n  hint: .*\n$`));
  });
});
