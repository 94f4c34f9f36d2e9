import { copyFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { connectDrover, type DroverClient, type ExecOptions } from '@drover/sdk';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { addLayer, busyboxRoot, eventually, TestDrover, tool } from '../harness/index.ts';

/** Issue "Faults found in use and under attack", heading 4: common programs. */

interface SandboxJson {
  readonly state: string;
  readonly reason: string;
  readonly message: string;
  readonly exitCode?: number;
  readonly exitSignal: string;
  readonly outOfMemory: boolean;
  readonly init?: { readonly exitCode?: number };
}

let drover: TestDrover;
let client: DroverClient;
let directory: string;
let layout: string;

const get = async (name: string): Promise<SandboxJson> => await drover.sandbox<SandboxJson>(name);

/** Runs a shell script in a sandbox. */
async function exec(script: string, options: ExecOptions = {}, input?: string, sandbox = 'web') {
  const handle = client.sandboxes.exec(sandbox, { argv: ['sh', '-c', script], stdin: input !== undefined, ...options });
  if (input !== undefined) handle.stdin.write(input);
  const [stdout, stderr, exit] = await Promise.all([text(handle.stdout), text(handle.stderr), handle.exit]);
  return { stdout: stdout.replaceAll('\r', ''), stderr, exit };
}

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-programs-'));
  await tool('chmod', '711', directory);
  layout = join(directory, 'layout');
  await tool('umoci', 'init', '--layout', layout);
  await tool('umoci', 'new', '--image', `${layout}:empty`);
  await addLayer(layout, 'empty', 'base', async (root) => {
    await busyboxRoot(root);
    await writeFile(join(root, 'etc/passwd'), 'app:x:1000:1000::/tmp:/bin/sh\n');
    await writeFile(join(root, 'etc/group'), 'app:x:1000:\nstaff:x:50:app\n');
    // As in many images, ping's file carries CAP_NET_RAW, effective, which a sandbox does not have (capability.h).
    await copyFile('/bin/busybox', join(root, 'bin/ping'));
    const capability = '0100000200200000000000000000000000000000';
    await tool('python3', '-c', `import os; os.setxattr('${root}/bin/ping', 'security.capability', bytes.fromhex('${capability}'))`);
  });
  drover = await TestDrover.start(['--pool', '10.234.0.0/18']);
  client = await connectDrover(await drover.connection());
  await drover.begin('web', ['sleep', '1d']);
});

afterAll(async () => {
  client?.close();
  await drover?.[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true });
});

describe('a program reopens /dev/stdout, /dev/stderr and /dev/stdin', () => {
  const reopen = 'echo to-out >> /dev/stdout && echo to-err >> /dev/stderr';
  const users = ['', '65534', '65534:100'];
  const kinds = users.flatMap((user) => [true, false].map((terminal) => ({ user, terminal })));

  test.each(kinds)('in an exec: %o', async ({ user, terminal }) => {
    const script = `${reopen} && read line < /dev/stdin && echo "got $line"`;
    const { stdout, stderr, exit } = await exec(script, { user, terminal }, 'a line\n');
    expect({ exit, text: stdout + stderr }).toMatchObject({ exit: { code: 0 } });
    expect(stdout).toMatch(/to-out\n/);
    expect(stdout).toMatch(/got a line\n$/);
    expect(terminal ? stdout : stderr).toMatch(/to-err\n/);
  });

  test('in an exec of a user with several groups', async () => {
    await drover.begin('groups', ['sleep', '1000'], { image: `oci:${layout}:base` });
    for (const terminal of [true, false]) {
      const { stdout, stderr, exit } = await exec(`${reopen} && busybox id -G`, { user: 'app', terminal }, undefined, 'groups');
      expect({ exit, text: stdout + stderr }).toMatchObject({ exit: { code: 0 }, text: expect.stringContaining('to-err') });
      expect(stdout).toMatch(/to-out\n[^]*1000 50\n/);
    }
  });

  test('as the command of a sandbox', async () => {
    const name = ({ user, terminal }: (typeof kinds)[number]): string => `main-${user.replace(':', '-')}-${terminal ? 't' : 'p'}`;
    await Promise.all(kinds.map(async (kind) => await drover.create(name(kind), ['sh', '-c', reopen], kind)));
    for (const kind of kinds) {
      await eventually(`${name(kind)} has ended`, async () => (await get(name(kind))).state === 'stopped');
      expect([kind, (await get(name(kind))).exitCode]).toEqual([kind, 0]);
      expect(await drover.logs(name(kind))).toMatch(/to-out\r?\n/);
    }
  });

  test.each(['0', '65534'])('in a post-init script of user %s', async (user) => {
    await drover.begin(`post-init-${user}`, ['true'], { user, setup: { postInit: `${reopen}\n` } });
  });
});

describe('signals', () => {
  test.each([
    ['TERM', 15],
    ['quit', 3],
    ['15', 15],
    ['37', 37],
    ['SIGRTMIN+3', 37],
    ['RTMIN+3', 37],
  ])('STOPSIGNAL %s is sent as signal %i', async (signal, number) => {
    const tag = `stop-${signal.replace('+', '-')}`;
    await tool('umoci', 'config', '--image', `${layout}:base`, '--tag', tag, '--config.stopsignal', signal);
    const script = 'for s in 3 15 37; do trap "exit $s" $s; done; echo ready; sleep 1000 & wait';
    await drover.begin(tag.toLowerCase(), ['/bin/sh', '-c', script], { image: `oci:${layout}:${tag}`, stopGraceMs: 20_000 });
    await eventually('the traps are set', async () => (await drover.logs(tag.toLowerCase())).includes('ready'));
    await drover.stop(tag.toLowerCase());
    expect(await get(tag.toLowerCase())).toMatchObject({ exitCode: number });
  });

  test('an unknown STOPSIGNAL fails the create with one sentence', async () => {
    await tool('umoci', 'config', '--image', `${layout}:base`, '--tag', 'bad-stop', '--config.stopsignal', 'SIGFOO');
    const { code, stderr } = await drover.run(['run', '--rm', '-n', `oci:${layout}:bad-stop`, '--', '/bin/true']);
    expect(stderr).toMatch(/names an unknown STOPSIGNAL: "SIGFOO"\n {2}hint: use a name such as SIGTERM [^\n]*\n$/);
    expect(code).toBe(125);
  });

  test.each([34, 37, 64])('a process ended by signal %i has status 128 plus the number, and the signal’s name', async (number) => {
    for (const terminal of [false, true]) {
      const { exit } = await exec(`kill -${number} $$`, { terminal });
      expect(exit).toMatchObject({ code: 128 + number, signal: number === 34 ? 'SIGRTMIN' : `SIGRTMIN+${number - 34}` });
    }
  });

  test('the command of a sandbox ended by a real-time signal has its status and name too', async () => {
    expect(await drover.run(['run', '--name', 'killed', '-n', 'host', '--', 'sh', '-c', 'kill -37 $$'])).toMatchObject({ code: 165 });
    expect(await drover.run(['sandbox', 'wait', 'killed'])).toMatchObject({ code: 165 });
    expect(await get('killed')).toMatchObject({ exitCode: 165, exitSignal: 'SIGRTMIN+3' });
  });

  test('a post-init script ended by a real-time signal has its status too', async () => {
    await drover.create('bad-init', ['true'], { setup: { postInit: 'kill -37 $$\n' } });
    const failed = await eventually('the plan has failed', async () => {
      const sandbox = await get('bad-init');
      return sandbox.state === 'failed' ? sandbox : undefined;
    });
    expect(failed.message).not.toContain('NaN');
    expect(failed).toMatchObject({ init: { exitCode: 165 } });
  });

  test('a signal can be sent by any of its names', async () => {
    const handle = client.sandboxes.exec('web', { argv: ['sh', '-c', 'trap "exit 9" 37; echo ready; sleep 1000 & wait'] });
    handle.stdout.once('data', () => handle.kill('rtmin+3'));
    handle.stderr.resume();
    expect(await handle.exit).toMatchObject({ code: 9 });
  });
});

describe('a command that cannot be started', () => {
  const capable = (): string => `oci:${layout}:base`;

  test.each([[], ['-t']])(
    'whose file carries capabilities that a sandbox does not have: 126 and the reason (flags %j)',
    async (...flags) => {
      const { code, stderr } = await drover.run(['run', '--rm', '-n', ...flags, capable(), '--', '/bin/ping']);
      expect(stderr).toMatch(
        /^drover: \/bin\/ping: cannot be executed in the sandbox \(its file carries capabilities [^\n]*\n {2}hint: [^\n]*\n$/m,
      );
      expect(code).toBe(126);
    },
  );

  test('started by run -d: the same status as in the foreground', async () => {
    for (const [program, status] of [
      ['no-such-program', 127],
      ['/etc/passwd', 126],
    ] as const) {
      const foreground = await drover.run(['run', '--rm', '-n', 'host', '--', program]);
      expect(foreground).toMatchObject({ code: status, stdout: '' });
      for (const flags of [[], ['--rm']]) {
        const { code, stdout, stderr } = await drover.run(['run', '-d', ...flags, 'host', '--', program]);
        expect({ code, stdout }).toEqual({ code: status, stdout: '' });
        expect(stderr).toContain(foreground.stderr.split('\n')[0]);
      }
    }
  });
});

describe('memory', () => {
  /** Returns the first out-of-memory kill in the events of a sandbox. */
  const kills = async (name: string): Promise<{ process: string; count: number }> => {
    const { id } = await drover.sandbox<{ id: string }>(name);
    for await (const { type, dataJson } of client.events.watch({ subject: id, kinds: ['sandbox'], fromStart: true })) {
      if (type === 'SandboxOomKill') return JSON.parse(dataJson) as { process: string; count: number };
    }
    throw new Error('the events ended');
  };
  const memory = { resources: { memoryBytes: 64n * 1024n * 1024n } };

  test('a killed child does not end the run: the run has the status of its command, and the kill is an event', async () => {
    await drover.create('greedy', ['sh', '-c', 'tail /dev/zero; echo "status $?"; exit 0'], memory);
    await eventually('the sandbox has ended', async () => /^(?:stopped|failed)$/.test((await get('greedy')).state));
    expect(await get('greedy')).toMatchObject({ reason: 'exited', exitCode: 0, outOfMemory: false });
    expect(await drover.logs('greedy')).toBe('status 137\n');
    const { process, count } = await kills('greedy');
    // The kernel's log names the process where it can be read.
    expect(['tail', '']).toContain(process);
    expect(count).toBe(1);
  });

  test('a killed child does not turn a later stop into a failure', async () => {
    await drover.begin('later', ['sh', '-c', 'tail /dev/zero; echo "status $?"; exec sleep 1d'], memory);
    await eventually('the child is killed', async () => (await drover.logs('later')) === 'status 137\n');
    await drover.stop('later');
    expect(await get('later')).toMatchObject({ state: 'stopped', reason: 'stopped', outOfMemory: false });
  });

  test('a killed command and a killed exec report the reason', async () => {
    await drover.begin('limited', ['sleep', '1d'], memory);
    for (const command of [
      ['tail', '/dev/zero'],
      ['sh', '-c', 'tail /dev/zero'],
    ]) {
      const { code, stderr } = await drover.run(['exec', '-n', 'limited', '--', ...command]);
      expect(stderr).toMatch(/^drover: limited ran out of memory\n {2}hint: give it more with --memory\n$/m);
      expect(code).toBe(137);
    }
    const killed = await drover.run(['exec', '-n', 'limited', '--', 'sh', '-c', 'kill -9 $$']);
    expect(killed).toMatchObject({ code: 137, stderr: '' });
    expect(await drover.json(['exec', 'ls', 'limited'])).toContainEqual(
      expect.objectContaining({ exit: expect.objectContaining({ outOfMemory: true, signal: 'SIGKILL' }) }),
    );
  });
});

describe('common expectations of programs', () => {
  test('--shm-size sets the size of /dev/shm, which permits execution', async () => {
    const script = 'df -k /dev/shm | tail -n 1 | { read _ size _; echo $size; }; cp /bin/true /dev/shm && /dev/shm/true && echo ran';
    const run = async (...flags: readonly string[]) => await drover.run(['run', '--rm', '-n', ...flags, 'host', '--', 'sh', '-c', script]);
    expect(await run('--memory', '48m')).toMatchObject({ code: 0, stdout: `${48 * 1024}\nran\n` });
    expect(await run('--shm-size', '100m')).toMatchObject({ code: 0, stdout: `${100 * 1024}\nran\n` });
    const refused = await run('--memory', '64m', '--shm-size', '65m');
    expect(refused).toMatchObject({ code: 125, stderr: expect.stringContaining('more than the memory limit') });
  });

  test('::1 is an address of the sandbox, as in /etc/hosts', async () => {
    const script =
      'import socket; s = socket.create_server(("::1", 0), family=socket.AF_INET6); socket.create_connection(s.getsockname()[:2]); print("connected")';
    expect(await drover.exec('web', ['python3', '-c', script])).toMatchObject({ code: 0, stdout: 'connected\n' });
  });
});
