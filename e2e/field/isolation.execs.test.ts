import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { connectDrover, type DroverClient } from '@drover/sdk';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { execa } from 'execa';
import { eventually, launcher, Terminal, TestDrover } from '../harness/index.ts';

/** Issue "Faults found in use and under attack", heading 6: execs, forwards and terminals of one sandbox. */

let drover: TestDrover;
let client: DroverClient;

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', '10.234.64.0/18']);
  client = await connectDrover(await drover.connection());
  await drover.begin('web', ['sleep', '1d']);
});

afterAll(async () => {
  client?.close();
  await drover?.[Symbol.asyncDispose]();
});

test('a paste into a terminal whose program does not read blocks nothing else, and arrives completely when the program reads', async () => {
  await drover.begin('pasted', ['sleep', '1d']);
  const paste = Buffer.from(randomBytes(200_000).toString('hex'));
  const script = `stty raw -echo; echo ready; until [ -e /tmp/go ]; do sleep 0.1; done; head -c ${paste.length} | sha256sum`;
  const handle = client.sandboxes.exec('pasted', { argv: ['sh', '-c', script], terminal: true, stdin: true });
  handle.stderr.resume();
  const [first] = (await once(handle.stdout, 'data')) as [Buffer];
  expect(first.toString()).toContain('ready');
  handle.stdin.write(paste);
  expect(await drover.run(['exec', '-n', 'pasted', 'true'], { timeoutMs: 30_000 })).toMatchObject({ code: 0 });
  await drover.exec('pasted', ['touch', '/tmp/go']);
  expect(await text(handle.stdout)).toContain(createHash('sha256').update(paste).digest('hex'));
  expect(await handle.exit).toMatchObject({ code: 0 });
});

interface ExecJson {
  readonly execId: string;
  readonly argv: readonly string[];
  readonly clients: number;
  readonly lingerSeconds: number;
  readonly exit?: { readonly code: number; readonly signal: string };
}

const execs = async (sandbox: string): Promise<ExecJson[]> => await drover.json<ExecJson[]>(['exec', 'ls', sandbox]);

describe('abandoned execs', () => {
  test('exec ls lists them, and exec kill ends one by its id with the chosen signal', async () => {
    const { stdout } = await drover.run(['exec', '-d', 'web', '--', 'sh', '-c', 'trap "exit 7" USR1; while :; do sleep 0.1; done']);
    const id = stdout.trim();
    expect(await execs('web')).toContainEqual(expect.objectContaining({ execId: id, clients: 0, argv: expect.arrayContaining(['sh']) }));
    expect((await drover.run(['exec', 'ls', 'web'])).stdout).toMatch(new RegExp(`^${id} +running +\\d+ .* sh -c trap`, 'm'));
    expect((await drover.run(['complete', 'words', 'exec', ''])).stdout).toMatch(/^ls\t[^]*^web\t/m);
    expect((await drover.run(['complete', 'words', 'exec', 'kill', 'web', ''])).stdout).toContain(`${id}\tsh -c trap`);
    await drover.json(['exec', 'kill', '--signal', 'usr1', 'web', id]);
    await eventually('the exec ends', async () => (await execs('web')).some(({ execId, exit }) => execId === id && exit?.code === 7));
    expect(await drover.json(['exec', 'kill', 'web', id])).toMatchObject({ signalled: false });
    expect(await drover.run(['exec', 'kill', 'web', 'never'])).toMatchObject({ code: 3, stderr: expect.stringContaining('"never"') });
  });

  test('64 execs refuse the next one with the next step, and killing one makes room', async () => {
    await drover.begin('full', ['sleep', '1d']);
    const start = () => client.sandboxes.exec('full', { argv: ['sleep', '1000'], lingerSeconds: 0 });
    const started = await Promise.all(Array.from({ length: 64 }, async () => await start().started));
    await expect(start().started).rejects.toMatchObject({ code: 'no-room', hint: expect.stringContaining('drover exec ls') });
    expect(await client.sandboxes.killExec('full', started[0]?.execId ?? '', 'KILL')).toBe(true);
    await eventually('the killed exec has ended', async () =>
      (await client.sandboxes.execs('full')).some(({ exit }) => exit?.signal === 'SIGKILL'),
    );
    await start().started;
    await drover.remove('full');
  });

  test('an exec without a client ends after its linger time, and never with a linger time of 0', async () => {
    const argv = ['sleep', '1000'];
    const [left, kept] = [1, 0].map((lingerSeconds) => client.sandboxes.exec('web', { argv, lingerSeconds }));
    const [leftId, keptId] = [(await left?.started)?.execId, (await kept?.started)?.execId];
    left?.detach();
    kept?.detach();
    const find = async (id: string | undefined) => (await client.sandboxes.execs('web')).find(({ execId }) => execId === id);
    await eventually('the first ends', async () => (await find(leftId))?.exit?.signal === 'SIGHUP');
    expect((await find(keptId))?.exit).toBeUndefined();
    await client.sandboxes.killExec('web', keptId ?? '');
  });

  test('an exec survives the detach keys', async () => {
    using terminal = new Terminal(drover, ['exec', '-t', 'web', '--', 'sh', '-c', 'echo at work; sleep 1000'], { columns: 80, rows: 24 });
    await terminal.shows('at work');
    const running = async () =>
      (await execs('web')).find(({ argv, exit }) => exit === undefined && argv.includes('echo at work; sleep 1000'));
    expect(await running()).toMatchObject({ lingerSeconds: 3_600, clients: 1 });
    terminal.type('\u0010\u0011');
    expect(await terminal.exit()).toBe(0);
    const left = await running();
    expect(left).toMatchObject({ lingerSeconds: 0 });
    await client.sandboxes.killExec('web', left?.execId ?? '');
  });
});

test('exec runs a command in a sandbox whose name is also a subcommand', async () => {
  await drover.begin('ls', ['sleep', '1d']);
  expect(await drover.run(['exec', '-n', 'ls', '--', 'echo', 'inside'])).toMatchObject({ code: 0, stdout: 'inside\n' });
  expect(await drover.json(['exec', 'ls', 'ls'])).toHaveLength(1);
});

test('with -n a loop over lines runs exec for each line', async () => {
  const script = `printf '1\\n2\\n' | while read x; do '${launcher}' exec -n web echo "line $x"; done`;
  const { stdout } = await execa('sh', ['-c', script], { env: drover.environment });
  expect(stdout).toBe('line 1\nline 2');
  for (const command of ['exec', 'run'])
    expect((await drover.run([command, '--help'])).stdout).toMatch(/reads your stdin[^]* needs -n [^]*while read/);
});

test('forwards have a separate bound: an exec does not wait for them', async () => {
  await drover.begin('forwarded', ['sleep', '1d']);
  const server =
    'import socket; s = socket.create_server(("127.0.0.1", 7777), backlog=512); print("ready", flush=True); a = []\nwhile True: a.append(s.accept())';
  const listener = client.sandboxes.exec('forwarded', { argv: ['python3', '-c', server] });
  listener.stderr.resume();
  await once(listener.stdout, 'data');
  const forwards = Array.from({ length: 300 }, () => client.sandboxes.forward('forwarded', 7777));
  const refusals: string[] = [];
  for (const forward of forwards) {
    forward.on('error', (error) => refusals.push(error.message));
    forward.resume();
    forward.write('hello');
  }
  const exec = async (): Promise<unknown> => await drover.run(['exec', '-n', 'forwarded', 'true'], { timeoutMs: 30_000 });
  expect(await exec()).toMatchObject({ code: 0 });
  await eventually('the forwards above the bound are refused', () => refusals.length >= 300 - 128);
  expect(refusals.every((message) => message.includes('128 connections are forwarded into the sandbox already'))).toBe(true);
  expect(await exec()).toMatchObject({ code: 0 });
  for (const forward of forwards) forward.destroy();
  listener.kill('SIGKILL');
  await listener.exit;
});
