import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { request } from 'node:http';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseAllowList } from '@drover/spec/policy';
import { afterEach, beforeEach, expect, onTestFinished, test } from 'vitest';
import { GatewayClient } from './index.ts';

let directory: string;
let client: GatewayClient;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-gateway-'));
  client = new GatewayClient(join(directory, 'control.sock'));
});

afterEach(async () => {
  client.close();
  await rm(directory, { recursive: true, force: true });
});

interface TestGateway {
  readonly pid: number;
  readonly port: number;
  readonly exited: Promise<readonly [number | null, NodeJS.Signals | null]>;
}

async function start(): Promise<TestGateway> {
  const reserved = createServer().listen(0, '127.0.0.1');
  await once(reserved, 'listening');
  const { port } = reserved.address() as AddressInfo;
  await new Promise((resolve) => reserved.close(resolve));
  const child = spawn(
    process.execPath,
    [
      '--conditions=development',
      join(import.meta.dirname, 'bin.ts'),
      'gateway',
      '--control-socket',
      join(directory, 'control.sock'),
      '--listen',
      `127.0.0.1:${port}`,
    ],
    { stdio: 'ignore', env: {} },
  );
  onTestFinished(() => void child.kill('SIGKILL'));
  const exited = once(child, 'exit') as unknown as TestGateway['exited'];
  return { pid: child.pid ?? 0, port, exited };
}

/** The status of a request through the gateway for a page of a server that this test runs; undefined when the gateway refuses the connection. */
async function ask(gatewayPort: number, origin = 'a.test'): Promise<number | undefined> {
  return await new Promise((resolve) => {
    request({ host: '127.0.0.1', port: gatewayPort, path: `http://${origin}/`, headers: { host: origin }, agent: false }, (response) =>
      resolve(response.resume().statusCode),
    )
      .on('error', () => resolve(undefined))
      .end();
  });
}

/** The pids of the daemons. */
async function daemonsOf(pid: number): Promise<readonly number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8').catch(() => '');
  return text.trim().split(' ').filter(Boolean).map(Number);
}

async function exists(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z');
  return !stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z');
}

/** A sandbox at this test's address that may reach everything public, and so no server of this machine. */
const policies = [{ sandboxId: 'sb-a', address: '127.0.0.1', policy: parseAllowList(['internet']) }];

test('G-9: a connection that is made before the daemon runs waits for it', async () => {
  const { port } = await start();
  // The supervisor listens first; the daemon still has to load.
  await expect.poll(async () => await ask(port), { timeout: 20_000 }).toBe(403);
});

test('G-6, G-9: SIGUSR1 and kill -9 replace the egress daemon; no connection is refused, and the policies stay in force', async () => {
  const { pid, port } = await start();
  await expect.poll(async () => (await client.health().catch(() => undefined))?.pid).toBe(pid);
  await client.apply(policies);
  const { version } = await client.health();
  for (const replace of [() => process.kill(pid, 'SIGUSR1'), (daemon: number) => process.kill(daemon, 'SIGKILL')]) {
    const [daemon = 0] = await daemonsOf(pid);
    replace(daemon);
    const statuses: (number | undefined)[] = [];
    // The name does not resolve, so 502 shows that the policy allows it; 403 would be a table that is empty.
    while (await exists(daemon)) statuses.push(await ask(port, 'name.invalid'));
    statuses.push(await ask(port, 'name.invalid'));
    // A request that the dying daemon had accepted may break; the one after it waits for the replacement.
    expect(statuses.filter((status) => status === 403)).toEqual([]);
    expect(statuses.at(-1)).toBe(502);
    expect((await client.health()).version).toBe(version);
    expect(await daemonsOf(pid)).not.toContain(daemon);
  }
});

test('G-10: SIGTERM ends the daemons and then the gateway, which reports no crash', async () => {
  const { pid, port, exited } = await start();
  await expect.poll(async () => await ask(port), { timeout: 20_000 }).toBe(403);
  const [daemon = 0] = await daemonsOf(pid);
  process.kill(pid, 'SIGTERM');
  expect(await exited).toEqual([0, null]);
  expect(await exists(daemon)).toBe(false);
});

test('a gateway that is killed takes its daemons with it, so that the next one can have its address', async () => {
  const { pid, port } = await start();
  await expect.poll(async () => await ask(port), { timeout: 20_000 }).toBe(403);
  const [daemon = 0] = await daemonsOf(pid);
  process.kill(pid, 'SIGKILL');
  await expect.poll(async () => await exists(daemon)).toBe(false);
  expect(await ask(port)).toBeUndefined();
});
