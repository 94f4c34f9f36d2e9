import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { formatJoinToken, newSecret } from '@drover/pki';
import { connectDrover } from '@drover/sdk';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, launcher, TestDrover } from '../harness/index.ts';

let drover: TestDrover;
let work: string;

beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'e2e-field-hosts-'));
  await execa('chmod', ['711', work]);
  drover = await TestDrover.start(['--pool', '10.238.64.0/18']);
  await drover.begin('stays', ['sleep', '1d']);
});

afterAll(async () => {
  await drover?.[Symbol.asyncDispose]();
  await rm(work, { recursive: true, force: true });
});

async function freePort(host: string): Promise<number> {
  const server = createServer().listen(0, host);
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

const joinHost = (server: string, token: string, ...args: string[]) =>
  drover.run(['agent', 'join', server, '--token', token, '--no-run', ...args]);

describe('13.5: host token', () => {
  test('a token for other machines comes with a warning where they cannot reach the control plane', async () => {
    const { stdout, stderr } = await drover.run(['host', 'token']);
    expect(stdout).toMatch(/^drv1\./);
    expect(stderr).toMatch(/other machines cannot join: [^\n]*\(127\.0\.0\.1\)\n {2}hint: .*--listen 0\.0\.0\.0:7443 --public-host NAME/);
    expect(JSON.parse((await drover.run(['host', 'token', '-o', 'json'])).stdout)).toHaveProperty('token');
  });
});

describe('13.5: agent join', () => {
  test('checks the machine before it uses the token', async () => {
    const { server } = await drover.connection();
    const { token } = await drover.json<{ token: string }>(['host', 'token']);
    const state = join(work, 'unfit');
    const unfit = await joinHost(server, token, '--state', state, '--runtime-program', '/nowhere/runc', '--name', 'unfit');
    expect({ code: unfit.code, stderr: unfit.stderr }).toEqual({ code: 6, stderr: expect.stringContaining('/nowhere/runc') as string });
    // The token keeps its single use.
    const fit = await joinHost(server, token, '--state', join(work, 'fit'), '--name', 'fit');
    expect({ code: fit.code, stderr: fit.stderr }).toMatchObject({ code: 0 });
    expect((await joinHost(server, token, '--state', join(work, 'third'))).stderr).toMatch(/used up or expired/);
    await drover.run(['host', 'rm', 'fit']);
  });

  test('refuses a state directory that belongs to a host of another control plane', async () => {
    const { server } = await drover.connection();
    const other = formatJoinToken({ secret: newSecret(), caFingerprint: 'ab'.repeat(32) });
    const { code, stderr } = await joinHost(server, other, '--state', join(drover.data, 'host'));
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/belongs to a host of another control plane[^]*--state/);
    expect((await drover.run(['exec', 'stays', '--', 'true'])).code).toBe(0);
  });
});

test('9.6: a control plane whose log is not read keeps responding', async () => {
  const data = join(work, 'unread');
  const log = `"$0" serve --data "$1" --listen 127.0.0.1:0 2>&1 >/dev/null | (read line; exec sleep 1d)`;
  const shell = spawn('sh', ['-c', log, launcher, data], { detached: true, stdio: 'ignore' });
  const read = async (name: string) => await readFile(join(data, name), 'utf8').catch(() => undefined);
  try {
    const { apiPort } = JSON.parse(await eventually('it is ready', async () => await read('server.json'), 60_000)) as { apiPort: number };
    const [token = '', caPem = ''] = await Promise.all([read('admin-token'), read(join('pki', 'ca.pem'))]);
    await using client = await disposable({ server: `https://127.0.0.1:${apiPort}`, token: token.trim(), caPem });
    // Each refused call writes a log line. Together they exceed the capacity of a pipe.
    for (let i = 0; i < 1500; i++) await expect(client.sandboxes.get(`nothing-${i}`)).rejects.toMatchObject({ code: 'sandbox-not-found' });
  } finally {
    if (shell.pid !== undefined) process.kill(-shell.pid, 'SIGKILL');
  }
});

async function disposable(options: Parameters<typeof connectDrover>[0]) {
  const client = await connectDrover(options);
  return Object.assign(client, { [Symbol.asyncDispose]: async () => await Promise.resolve(client.close()) });
}

test('9.6: docs/inside.md: operations that are refused by design', async () => {
  const inside = async (...argv: string[]) => await drover.exec('stays', argv);
  for (const flag of ['-U', '-m', '-n', '-p']) expect((await inside('unshare', flag, 'true')).stderr).toMatch(/not permitted/);
  expect((await inside('mount', '-t', 'tmpfs', 'x', '/mnt')).stderr).toMatch(/permission denied/);
  expect((await inside('mknod', '/tmp/x', 'c', '1', '3')).stderr).toMatch(/not permitted/);
  expect((await inside('cat', '/proc/self/status')).stdout).toMatch(/NoNewPrivs:\s1\nSeccomp:\s2/);
  expect((await inside('ls', '/dev')).stdout).not.toMatch(/kvm|fuse|loop/);
  expect((await inside('chroot', '/', 'true')).code).toBe(0);
});

describe('13.5: the address of the control plane', () => {
  test('`up` on the same data with another address starts, with its host and its sandboxes', async () => {
    const elsewhere = `127.0.0.2:${await freePort('127.0.0.2')}`;
    for (const listen of [elsewhere, '127.0.0.1:0']) {
      await drover.interrupt();
      await drover.up(['--listen', listen, '--pool', '10.238.64.0/18']);
      expect((await drover.run(['exec', 'stays', '--', 'echo', listen])).stdout).toBe(`${listen}\n`);
    }
  });
});
