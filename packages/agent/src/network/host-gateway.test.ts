import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { request } from 'node:http';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { silentLogger } from '@drover/foundation/log';
import { emptyPolicy, parseAllowList } from '@drover/spec/policy';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { HostGateway, type HostGatewayOptions } from './host-gateway.ts';
import { startOutside, type Outside } from './testing/outside.ts';

const program = new URL('../../../gateway/src/bin.ts', import.meta.url).pathname;
const command: HostGatewayOptions['command'] = [process.execPath, '--conditions=development', program, 'gateway'];

let state: string;
let port: number;
let web: Outside;
const opened: HostGateway[] = [];

beforeAll(async () => {
  web = await startOutside('10.252.66');
});
afterAll(async () => await web[Symbol.asyncDispose]());

beforeEach(async () => {
  state = await mkdtemp(join(tmpdir(), 'drover-gateway-'));
  const reserved = createServer().listen(0, '127.0.0.1');
  await once(reserved, 'listening');
  ({ port } = reserved.address() as AddressInfo);
  await new Promise((resolve) => reserved.close(resolve));
});

afterEach(async () => {
  for (const gateway of opened.splice(0)) await gateway.close({ leaveRunning: false }).catch(() => undefined);
  // A gateway that a failed test left records its pid.
  const left = await readFile(join(state, 'gateway/process.json'), 'utf8').catch(() => '{}');
  const { pid } = JSON.parse(left) as { pid?: number };
  if (pid !== undefined && (await isAlive(pid))) process.kill(pid, 'SIGKILL');
  await rm(state, { recursive: true, force: true });
});

function gateway(): HostGateway {
  const made = new HostGateway({ stateDirectory: state, command, address: '127.0.0.1', port, logger: silentLogger });
  opened.push(made);
  return made;
}

const policies = () => [{ sandboxId: 'sb-a', address: '127.0.0.1', policy: parseAllowList([web.origin]) }];

/** Requests the test's page through the gateway. Returns the status, or undefined when nothing listens. */
async function ask(): Promise<number | undefined> {
  return await new Promise((resolve) => {
    request({ host: '127.0.0.1', port, path: `http://${web.origin}/`, headers: { host: web.origin }, agent: false }, (answer) => {
      answer.resume();
      resolve(answer.statusCode);
    })
      .on('error', () => resolve(undefined))
      .end();
  });
}

/** The pid of the gateway's only daemon. */
async function daemonOf(pid: number): Promise<number> {
  return Number((await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).trim());
}

async function isAlive(pid: number): Promise<boolean> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z');
  return !text.slice(text.lastIndexOf(')') + 2).startsWith('Z');
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  const end = Date.now() + 20_000;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`never came true: ${condition.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

describe('the gateway of a host', () => {
  test('starts with the first policies, runs without privileges, and only the agent can open its control socket', async () => {
    const own = gateway();
    await own.apply(policies());
    expect(await ask()).toBe(200);
    const { mode, pid, health } = await own.status();
    expect(mode).toBe('launch');
    expect(health).toMatchObject({ version: 1n, pid, listening: [`127.0.0.1:${port}`] });
    const egress = await daemonOf(pid);
    const proc = await readFile(`/proc/${egress}/status`, 'utf8');
    expect(proc).toMatch(/^Uid:\s+64213\s+64213\s+64213\s+64213$/m);
    expect(proc).toMatch(/^Gid:\s+64213\s+64213\s+64213\s+64213$/m);
    expect(proc).toMatch(/^Groups:\s*$/m);
    expect(proc).toMatch(/^CapEff:\s+0+$/m);
    expect((await stat(join(state, 'gateway/control.sock'))).mode & 0o777).toBe(0o600);
    await own.close({ leaveRunning: false });
    expect(await isAlive(pid)).toBe(false);
  });

  test('a gateway that is killed is replaced, with the policies in force', async () => {
    const own = gateway();
    await own.apply(policies());
    const { pid } = await own.status();
    process.kill(pid, 'SIGKILL');
    await until(async () => (await own.status()).pid !== pid && (await ask()) === 200);
  });

  test('R-9, G-29: the gateway serves on when the agent is killed; the next agent attaches to it, and replaces it when it dies later', async () => {
    const agent = `
      import { HostGateway } from ${JSON.stringify(new URL('./host-gateway.ts', import.meta.url).href)};
      import { silentLogger } from '@drover/foundation/log';
      import { parseAllowList } from '@drover/spec/policy';
      const gateway = new HostGateway({ stateDirectory: ${JSON.stringify(state)}, command: ${JSON.stringify(command)}, address: '127.0.0.1', port: ${port}, logger: silentLogger });
      await gateway.apply([{ sandboxId: 'sb-a', address: '127.0.0.1', policy: parseAllowList([${JSON.stringify(web.origin)}]) }]);
      console.log((await gateway.status()).pid);
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--conditions=development', '--input-type=module', '-e', agent], {
      cwd: import.meta.dirname,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const pid = Number(String((await once(child.stdout, 'data'))[0]));
    child.kill('SIGKILL');
    await once(child, 'exit');
    expect(await ask()).toBe(200);
    // Its log has lost its reader, and refusals are still logged.
    expect(
      await new Promise((resolve) =>
        request({ host: '127.0.0.1', port, path: 'http://other.test/', headers: { host: 'other.test' } }, (a) =>
          resolve(a.resume().statusCode),
        ).end(),
      ),
    ).toBe(403);

    const next = gateway();
    await next.apply(policies());
    expect(await next.status()).toMatchObject({ mode: 'attach', pid });
    expect(await ask()).toBe(200);

    process.kill(pid, 'SIGKILL');
    await until(async () => (await next.status()).mode === 'launch' && (await ask()) === 200);
  });

  test('R-9: an attached gateway that has died is replaced by the next apply', async () => {
    const first = gateway();
    await first.apply(policies());
    const { pid } = await first.status();
    await first.close({ leaveRunning: true });
    const next = gateway();
    await next.apply([]);
    const egress = await daemonOf(pid);
    process.kill(pid, 'SIGKILL');
    await until(async () => !(await isAlive(pid)) && !(await isAlive(egress)));
    await next.apply(policies());
    expect((await next.status()).mode).toBe('launch');
    expect(await ask()).toBe(200);
  });

  test('a gateway that cannot listen fails the apply immediately with the reason, and the next apply tries it again without a wait', async () => {
    const holder = createServer().listen(port, '127.0.0.1');
    await once(holder, 'listening');
    const own = gateway();
    const error = await own.apply(policies()).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({
      code: 'unavailable',
      message: `the gateway does not start: 127.0.0.1:${port}, where the gateway is to listen, is held by another process`,
      hint: expect.stringContaining(`ss -Hltnp sport = :${port}`) as string,
    });
    for (let tries = 0; tries < 3; tries++) await expect(own.apply(policies())).rejects.toMatchObject({ code: 'unavailable' });
    await new Promise((resolve) => holder.close(resolve));
    await own.apply(policies());
    expect(await ask()).toBe(200);
  });

  test('R-9: policies that could not be applied reach the gateway as soon as it is healthy', async () => {
    const holder = createServer().listen(port, '127.0.0.1');
    await once(holder, 'listening');
    const own = gateway();
    await expect(own.apply(policies())).rejects.toMatchObject({ code: 'unavailable' });
    await new Promise((resolve) => holder.close(resolve));
    await until(async () => (await ask()) === 200);
  });

  test('R-1: a released gateway serves the sandboxes that run on', async () => {
    const first = gateway();
    await first.apply(policies());
    const { pid } = await first.status();
    await first.close({ leaveRunning: true });
    expect(await ask()).toBe(200);
    const next = gateway();
    await next.apply([]);
    expect(await next.status()).toMatchObject({ mode: 'attach', pid });
    expect(await ask()).toBe(403);
  });

  test('a gateway that listens elsewhere is ended and replaced', async () => {
    const first = gateway();
    await first.apply(policies());
    const { pid } = await first.status();
    await first.close({ leaveRunning: true });
    const reserved = createServer().listen(0, '127.0.0.1');
    await once(reserved, 'listening');
    ({ port } = reserved.address() as AddressInfo);
    await new Promise((resolve) => reserved.close(resolve));
    const next = gateway();
    await next.apply(policies());
    expect(await isAlive(pid)).toBe(false);
    expect((await next.status()).mode).toBe('launch');
    expect(await ask()).toBe(200);
  });
});

test('the gateway refuses invalid policies as a whole, and the old ones stay in force', async () => {
  const own = gateway();
  await own.apply(policies());
  await expect(own.apply([{ sandboxId: 'sb-a', address: 'not an address', policy: emptyPolicy }])).rejects.toMatchObject({
    code: 'invalid-argument',
  });
  expect(await ask()).toBe(200);
});
