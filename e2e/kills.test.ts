import { createHash, randomInt } from 'node:crypto';
import { once } from 'node:events';
import { readFile, rm } from 'node:fs/promises';
import { createServer, connect, type AddressInfo, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { connectDrover } from '@drover/sdk';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { containers, eventually, HostNetwork, isAlive, sandboxesOf, sharedDirectory, TestDrover, tracesOf } from './harness/index.ts';

interface SandboxJson {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly message: string;
  readonly exitCode?: number;
  readonly startCount: number;
}

/** A process to kill with SIGKILL. */
type Victim = 'serve' | 'agent' | 'gateway' | 'up';

const seed = Number(process.env['DROVER_TEST_SEED'] ?? randomInt(2 ** 31));
const random = randomFrom(seed);
const upArguments = ['--standbys', '1', '--pool', '10.214.128.0/17'];
/** Sandboxes that run through all rounds. Each run of a command adds its name to the file `ran`, which shows repeated runs. */
const steady = ['c1', 'c2', 'c3', 'c4'] as const;

let drover: TestDrover;
let world: HostNetwork;
let shared: string;
let state: string;

const sandboxes = async (): Promise<readonly SandboxJson[]> => await drover.sandboxes<SandboxJson>();
const sandbox = async (name: string): Promise<SandboxJson> => await drover.sandbox<SandboxJson>(name);
const mounts = () => ({ mounts: [{ source: shared, target: '/shared' }] });

/** Records its name in `ran`, prints `run NAME`, works for some time, prints `end NAME`, and exits with the status. */
const command = (name: string, seconds: number, status: number): readonly string[] => {
  const script = `echo ${name} >> /shared/ran; echo run ${name}; sleep ${seconds}; echo end ${name}; exit ${status}`;
  return ['sh', '-c', script];
};

async function ran(): Promise<ReadonlyMap<string, number>> {
  const counts = new Map<string, number>();
  const text = await readFile(join(shared, 'ran'), 'utf8').catch(() => '');
  for (const name of text.split('\n')) if (name !== '') counts.set(name, (counts.get(name) ?? 0) + 1);
  return counts;
}

async function kill(victim: Victim): Promise<void> {
  const pid = victim === 'up' ? drover.upPid : await drover.pidOf(victim);
  process.kill(pid, 'SIGKILL');
  await eventually(`${victim} is dead`, () => !isAlive(pid));
}

/** Waits until the control plane responds and the host is connected. */
async function waitForRecovery(): Promise<void> {
  await eventually(
    'the host is ready again',
    async () => {
      const hosts = await drover.hosts().catch(() => undefined);
      return hosts?.every(({ state: now }) => now === 'ready');
    },
    60_000,
  );
}

/** Returns the sandboxes whose containers run according to the OCI runtime. */
async function running(): Promise<readonly string[]> {
  const program = join(state, 'program');
  const { stdout } = await execa('runc', ['--root', program, 'list', '--format', 'json']);
  const list = (JSON.parse(stdout) ?? []) as { id: string; status: string }[];
  expect(new Set(list.map(({ id }) => id)).size).toBe(list.length);
  return await sandboxesOf(
    state,
    list.filter(({ status }) => status === 'running').map(({ id }) => id),
  );
}

/** L-22, R-9: waits until the store, the runtime and the kernel agree on the running sandboxes. */
async function waitForAgreement(): Promise<void> {
  let seen: unknown;
  await eventually(
    'store, runtime and kernel show the same sandboxes',
    async () => {
      const rows = await sandboxes();
      const inKernel = await running();
      seen = { rows: rows.map(({ id, name, state, message }) => ({ id, name, state, message })), inKernel };
      // A failed sandbox stays failed, so waiting is useless.
      expect(rows.filter((row) => row.state === 'failed').map(({ name, message }) => `${name}: ${message}`)).toEqual([]);
      if (rows.some((row) => !['running', 'stopped'].includes(row.state))) return false;
      const wanted = rows.filter((row) => row.state === 'running').map(({ id }) => id);
      return wanted.toSorted().join() === inKernel.toSorted().join();
    },
    60_000,
    () => seen,
  );
  const rows = await sandboxes();
  expect(new Set(rows.map(({ name }) => name)).size).toBe(rows.length);
  // Each running sandbox has one init, and others have none. The mounted run directory identifies an init.
  const known = new Set(rows.map(({ id }) => id));
  expect((await containers(state)).filter((id) => !known.has(id))).toEqual([]);
}

beforeAll(async () => {
  console.info(`kills: DROVER_TEST_SEED=${seed}`);
  world = await HostNetwork.create('10.215.254', { firewall: false });
  drover = await TestDrover.start(upArguments, async (directory) => {
    shared = await sharedDirectory(directory);
    return ['--allow-mount', shared];
  });
  state = join(drover.data, 'host');
});

/** Whether the previous test left its sandboxes as the next one needs them. After a failed test they are recreated. */
let intact = false;

beforeEach(async () => {
  if (intact) return;
  if (!isAlive(drover.upPid)) await drover.up([...upArguments, '--allow-mount', shared]);
  await waitForRecovery();
  const left = (await sandboxes()).map(({ id }) => id);
  await drover.remove(...left);
  await rm(join(shared, 'ran'), { force: true });
  for (const [index, name] of steady.entries()) await drover.begin(name, command(name, 600, index), mounts());
});

afterEach(({ task }) => {
  intact = task.result?.state === 'pass';
});

afterAll(async () => {
  await using _world = world;
  await using instance = drover;
  // A failed test may have left it stopped.
  if (!isAlive(instance.upPid)) await instance.up(upArguments);
  const left = await tracesOf(instance);
  await instance[Symbol.asyncDispose]();
  // removal leaves no trace of a sandbox.
  expect(await left()).toEqual([]);
});

describe('R-9, L-22: kill -9 while sandboxes run and while some are being created', () => {
  const rounds: readonly (readonly Victim[])[] = [['serve'], ['agent'], ['agent', 'serve'], ['gateway', 'agent'], ['up']];

  let survived = 0;

  test.each(rounds.map((victims, round) => ({ victims, round })))('$round: $victims', async ({ victims, round }) => {
    const names = Array.from({ length: 4 }, (_, index) => `r${round}-${index}`);
    const creating = names.map(async (name, index) => {
      await delay(random() * 400);
      const verb = index % 2 === 0 ? ['run', '-d'] : ['sandbox', 'create', '--no-wait'];
      const made = await drover.run(
        [...verb, '--name', name, '--volume', `${shared}:/shared`, 'host', '--', ...command(name, 2 + index / 2, 10 + index)],
        {
          timeoutMs: 100_000,
        },
      );
      return { name, status: 10 + index, ...made };
    });
    // A random time between the first request and the last start, so that each round meets different work.
    await delay(300 + random() * 1500);
    for (const victim of victims) {
      await kill(victim);
      await delay(random() * 300);
    }
    if (victims.includes('up')) await drover.up([...upArguments, '--allow-mount', shared]);
    const made = await Promise.all(creating);
    await waitForRecovery();
    await waitForAgreement();

    const kept = made.filter(({ code }) => code === 0);
    const rows = await eventually(
      'the created sandboxes end',
      async () => {
        const now = new Map((await sandboxes()).map((row) => [row.name, row]));
        return kept.every(({ name }) => now.get(name)?.state === 'stopped') ? now : undefined;
      },
      60_000,
    );
    const counts = await ran();
    // A failed create reported why, and its command ran at most once.
    for (const { name, stderr } of made.filter(({ code }) => code !== 0)) {
      expect(stderr).toMatch(/^drover: [^\n]+/m);
      expect(counts.get(name) ?? 0).toBeLessThanOrEqual(1);
    }
    await Promise.all(
      kept.map(async ({ name, status }) => {
        expect(rows.get(name)).toMatchObject({ exitCode: status, startCount: 1 });
        expect(await drover.logs(name)).toBe(`run ${name}\nend ${name}\n`);
        expect(counts.get(name)).toBe(1);
      }),
    );
    survived += kept.length;

    await Promise.all(
      steady.map(async (name) => {
        expect(rows.get(name)).toMatchObject({ state: 'running', startCount: 1 });
        expect(await drover.logs(name)).toBe(`run ${name}\n`);
        expect(counts.get(name)).toBe(1);
      }),
    );
    expect(await drover.exec('c1', ['echo', 'reached'])).toMatchObject({ code: 0, stdout: 'reached\n' });

    await drover.remove(...[...rows.values()].filter(({ name }) => name.startsWith(`r${round}-`)).map(({ id }) => id));
  });

  test('most creates of the rounds above succeeded despite the kills', () => {
    expect(survived).toBeGreaterThan(rounds.length);
  });

  test('a command that ends while Drover is down has its exit code and its complete log', async () => {
    const name = 'alone';
    await drover.begin(name, command(name, 2, 42), mounts());
    await eventually('its command has started', async () => (await ran()).has(name));
    await drover.interrupt();
    const pid = Number((await readFile(join(state, 'sandboxes', await idOnDisk(name), 'init.pid'), 'utf8')).trim());
    // A zombie has exited too: its new parent may be slow to reap it.
    await eventually('the init exits', async () => /^$|\) Z/.test(await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')));
    await drover.up([...upArguments, '--allow-mount', shared]);
    await waitForRecovery();
    const row = await eventually('the control plane reports its end', async () => {
      const now = await sandbox(name);
      return now.state === 'stopped' ? now : undefined;
    });
    expect(row).toMatchObject({ exitCode: 42, startCount: 1 });
    expect(await drover.logs(name)).toBe(`run ${name}\nend ${name}\n`);
    await drover.remove(name);
  });

  async function idOnDisk(name: string): Promise<string> {
    for (const id of await containers(state)) {
      const record = JSON.parse(await readFile(join(state, 'records', `${id}.json`), 'utf8')) as { name?: string };
      if (record.name === name) return id;
    }
    throw new Error(`${name} is not on the host`);
  }
});

describe('unaffected by a kill', () => {
  test('R-9: a connection through the gateway outlives the agent, and the next agent adopts the gateway', async () => {
    const script =
      'const s = require("net").createServer(c => { c.once("data", () => { c.write("HTTP/1.1 200 OK\\r\\n\\r\\n"); let n = 0; const t = setInterval(() => c.write(`line ${n++}\\n`), 50); c.on("close", () => clearInterval(t)); c.on("error", () => {}); }); }).listen(8080, () => console.log("listening"))';
    const [file, ...args] = world.command(process.execPath, '-e', script);
    const server = execa(file, args, { reject: false });
    try {
      await once(server.stdout, 'data');
      const target = `${world.hostAddress}:8080`;
      const stream = ['sh', '-c', `curl -sN http://${target}/`];
      await drover.begin('out', stream, { allow: [target] });
      const lines = async (): Promise<number> => (await drover.logs('out')).split('\n').length;
      await eventually('the download runs', async () => (await lines()) > 3);
      const gateway = await drover.pidOf('gateway');
      await kill('agent');
      await waitForRecovery();
      // The control plane may report the host as ready before it notices that the stream ended.
      const readable = async (): Promise<number | undefined> => await lines().catch(() => undefined);
      const before = await eventually('its log is readable again', readable);
      await eventually('the download still runs', async () => ((await readable()) ?? 0) > before + 10);
      expect(await drover.pidOf('gateway')).toBe(gateway);
      const numbers = (await drover.logs('out')).split('\n').flatMap((line) => /^line (\d+)$/.exec(line)?.[1] ?? []);
      expect(numbers.map(Number)).toEqual(numbers.map((_, index) => index));
      // The new agent's policies are in force: other addresses are refused as before.
      const refused = await drover.exec('out', ['curl', '-s', `http://${world.hostAddress}:8081/`]);
      expect(refused.stdout).toContain('egress-denied');
      await drover.remove('out');
    } finally {
      server.kill('SIGKILL');
      await server;
    }
  });

  test('L-20: a create whose response was lost makes one sandbox, however often it is repeated', async () => {
    const { server, token, caPem } = await drover.connection();
    const { hostname, port } = new URL(server);
    // The relay drops the first response of the server, with its connection.
    let dropped = 0;
    const relay = createServer((near) => {
      const far = connect(Number(port), hostname);
      near.on('error', () => far.destroy()).on('close', () => far.destroy());
      far.on('error', () => near.destroy()).on('close', () => near.destroy());
      near.pipe(far);
      if (dropped === 0) dropResponse(near, far, () => dropped++);
      else far.pipe(near);
    });
    relay.listen(0, '127.0.0.1');
    await once(relay, 'listening');
    const before = (await sandboxes()).length;
    const client = await connectDrover({ server: `https://127.0.0.1:${(relay.address() as AddressInfo).port}`, token, caPem });
    try {
      const options = { spec: { image: 'host', command: ['sleep', '600'] }, idempotencyKey: `lost-${seed}` };
      const first = await client.sandboxes.create(options);
      expect(dropped).toBe(1);
      expect((await sandboxes()).length).toBe(before + 1);
      await kill('serve');
      await waitForRecovery();
      expect((await client.sandboxes.create(options)).id).toBe(first.id);
      expect((await sandboxes()).length).toBe(before + 1);
      await client.sandboxes.remove(first.id);
    } finally {
      client.close();
      relay.close();
    }
  });

  test('L-20: the CLI makes one sandbox for each create while the control plane is killed repeatedly', async () => {
    const names = Array.from({ length: 4 }, (_, index) => `again-${index}`);
    const creating = names.map(async (name) => ({
      name,
      ...(await drover.run(['sandbox', 'create', '--no-wait', '--name', name, 'host', 'sleep', '600'])),
    }));
    for (let i = 0; i < 2; i++) {
      await delay(300 + random() * 700);
      await kill('serve');
    }
    const made = await Promise.all(creating);
    await waitForRecovery();
    await waitForAgreement();
    const rows = await sandboxes();
    for (const { name, code, stderr } of made) {
      const found = rows.filter((row) => row.name === name).length;
      // A repeated create that conflicted with its own first attempt would report name-taken.
      expect(stderr).not.toMatch(/there is a sandbox named/);
      if (code === 0) expect(found).toBe(1);
      else expect(found).toBeLessThanOrEqual(1);
    }
  });
});

test('R-9: after the removal of all sandboxes no container, process, namespace or mount is left', async () => {
  const rows = await sandboxes();
  expect((await drover.run(['sandbox', 'rm', '--force', ...rows.map(({ id }) => id)])).code).toBe(0);
  expect(await sandboxes()).toEqual([]);
  expect(await containers(state)).toEqual([]);
  const left = await tracesOf(drover);
  expect(await drover.interrupt()).toBe(0);
  expect(await left()).toEqual([]);
  await drover.up(upArguments);
});

/** Passes the TLS handshake, then holds the server's output until it is long enough for a response, and breaks the connection. */
function dropResponse(near: Socket, far: Socket, dropped: () => void): void {
  let sent = 0;
  let asked = false;
  near.on('data', (data) => {
    sent += data.length;
    // The handshake and HTTP/2's preface are shorter than this; a request with its spec and headers is longer.
    if (sent > 900) asked = true;
  });
  far.on('data', (data) => {
    if (!asked) {
      near.write(data);
      return;
    }
    if (data.length < 200) return;
    dropped();
    near.destroy();
    far.destroy();
  });
}

/** Returns numbers in [0, 1) that follow from the seed. A hash of a counter is random enough here. */
function randomFrom(from: number): () => number {
  let drawn = 0;
  return () => createHash('sha256').update(`${from}/${drawn++}`).digest().readUInt32BE() / 2 ** 32;
}
