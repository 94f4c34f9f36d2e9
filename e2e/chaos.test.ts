import { randomInt } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { DroverError } from '@drover/foundation';
import { api } from '@drover/protocol';
import { connectDrover, type DroverClient } from '@drover/sdk';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, repository, sharedDirectory, TestDrover, tracesOf } from './harness/index.ts';

interface SandboxJson {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly message: string;
  readonly startCount: number;
  readonly identity: { readonly verdict: string; readonly thumbprint: string };
  readonly init: { readonly state: string };
}

const seed = Number(process.env['DROVER_TEST_SEED'] ?? randomInt(2 ** 31));
const random = randomFrom(seed);
const kills = 50;
const count = 20;
const pool = ['--pool', '10.222.192.0/19'];
const names = Array.from({ length: count }, (_, index) => `c${index}`);

let drover: TestDrover;
let shared: string;
let client: DroverClient;
/** The host agent, which runs until the end of the test: only the control plane is killed. */
let agent: ReturnType<typeof part> | undefined;
let server: ReturnType<typeof part> | undefined;

/**
 * Starts `drover serve` or `drover agent` on the data of `up`, as a service manager that has recorded a kill.
 * `up` itself would delay the restarts of a part that dies so often (S-6).
 */
function part(...args: readonly string[]) {
  const output = { file: join(drover.data, 'drover.log'), append: true };
  return execa(join(repository, 'drover'), args, {
    env: { ...drover.environment, DROVER_LAST_END: 'SIGKILL' },
    reject: false,
    stdin: 'ignore',
    stdout: output,
    stderr: output,
    buffer: false,
    cleanup: false,
  });
}

function serve(): ReturnType<typeof part> {
  return part('serve', '--data', join(drover.data, 'control-plane'), '--listen', '127.0.0.1:0');
}

const sandboxes = async (): Promise<readonly SandboxJson[]> => await drover.sandboxes<SandboxJson>();

/** Retries an action that a kill interrupted. Any other failure is a defect. */
async function retryInterrupted(action: () => Promise<unknown>): Promise<void> {
  await eventually(
    'the control plane accepts the request',
    async () => {
      try {
        await action();
        return true;
      } catch (error) {
        if (error instanceof DroverError && error.transient) return false;
        throw error;
      }
    },
    240_000,
  );
}

async function answers(): Promise<void> {
  await retryInterrupted(async () => await client.sandboxes.list());
}

/** Waits until the host is ready, and then for a moment at which its sandboxes may be in any state. */
async function waitForHost(): Promise<void> {
  await retryInterrupted(async () => {
    const hosts = await client.hosts.list();
    if (!hosts.every(({ state }) => state === api.HostState.READY)) throw new DroverError('unavailable', 'the host is not back yet');
  });
}

const plansDone = async (): Promise<number> =>
  (await readFile(join(shared, 'said'), 'utf8').catch(() => '')).split('\n').filter((line) => line.startsWith('planned ')).length;

/** Waits until another plan is done, or for the given time, so that kills meet sandboxes at work and not only a starting control plane. */
async function waitForPlan(withinMs: number): Promise<void> {
  const [before, end] = [await plansDone(), Date.now() + withinMs];
  while (Date.now() < end && (await plansDone()) === before) await delay(50);
}

async function create(name: string): Promise<void> {
  // The plan takes a varying time, so that kills meet it at every step.
  const script = `#!/bin/sh\necho "begun ${name} ${start}" >> /shared/said\nsleep 0.$(($$ % 8 + 1))\necho "planned ${name} ${start}" >> /shared/said\n`;
  // Every fourth sandbox also has a file that each session places with a separate program.
  const placed = Number(name.slice(1)) % 4 === 0;
  const check = placed ? `cat /etc/chaos >/dev/null || echo "unplanned ${name} ${start}" >> /shared/said; ` : '';
  const command = `echo "ran ${name} ${start}" >> /shared/said; ${check}exec sleep 600`;
  await client.sandboxes.create({
    name,
    idempotencyKey: `chaos-${seed}-${name}`,
    spec: {
      image: 'host',
      command: ['sh', '-c', command],
      mounts: [{ source: shared, target: '/shared' }],
      setup: { files: placed ? [{ path: '/etc/chaos', source: { case: 'content', value: `${name}\n` } }] : [], postInit: script },
    },
  });
}

/** Identifies the start of a sandbox by init's own start time. */
const start = "$(cut -d' ' -f22 /proc/1/stat)";

beforeAll(async () => {
  console.info(`chaos: DROVER_TEST_SEED=${seed}`);
  // With a short retry interval kills meet a host at work and not a waiting one.
  drover = await TestDrover.start([...pool, '--reconnect-max', '1s'], async (directory) => {
    shared = await sharedDirectory(directory);
    return ['--allow-mount', shared];
  });
  await drover.interrupt();
  client = await connectDrover(await drover.connection());
  agent = part('agent', '--state', join(drover.data, 'host'));
});

afterAll(async () => {
  await using instance = drover;
  // Without an agent the setup has failed, and its error is reported.
  if (agent === undefined) return;
  client.close();
  for (const running of [agent, server]) {
    running?.kill('SIGINT');
    await running;
  }
  await instance.up([...pool, '--allow-mount', shared]);
  const left = await tracesOf(instance);
  await instance[Symbol.asyncDispose]();
  expect(await left()).toEqual([]);
});

test(`I-12, I-24, I-32: ${count} sandboxes start, stop and run their plans while the control plane is killed ${kills} times`, {
  timeout: 480_000,
  // A retry would start with the state of the failed attempt.
  retry: 0,
}, async () => {
  let killed = 0;
  const killsDone = new AbortController();
  server = serve();

  const killing = (async () => {
    while (killed < kills) {
      // Mostly while it works with the host, sometimes earlier, even before it serves.
      const moment = random();
      if (moment < 0.7) {
        await waitForHost();
        await waitForPlan(3000);
      } else if (moment < 0.9) await answers();
      await delay(random() * 1500);
      const pid = await drover.pidOf('serve');
      process.kill(pid, 'SIGKILL');
      killed++;
      await server;
      server = serve();
    }
    killsDone.abort();
  })();

  // The life of each sandbox: it is created, then stopped and started until the kills end.
  const lives = names.map(async (name) => {
    await retryInterrupted(async () => await create(name));
    // Alternate between stop and start without waiting, to meet every state. The pauses leave time for the control plane's starts,
    // so that kills meet a host at work.
    for (let desired = false; !killsDone.signal.aborted; desired = !desired) {
      await delay(6000 + random() * 20_000, undefined, { signal: killsDone.signal }).catch(() => undefined);
      await retryInterrupted(async () => await (desired ? client.sandboxes.start(name) : client.sandboxes.stop(name, { graceMs: 1000 })));
    }
  });
  await Promise.all([killing, ...lives]);
  expect(killed).toBe(kills);

  for (const name of names) await retryInterrupted(async () => await client.sandboxes.start(name));
  let seen: readonly SandboxJson[] = [];
  await eventually(
    'all run, their plans completed and their identities trusted',
    async () => {
      seen = await sandboxes();
      return seen.every(({ state, init, identity }) => state === 'running' && init.state === 'completed' && identity.verdict === 'trusted');
    },
    120_000,
    () => seen.map(({ name, state, message, init, identity }) => ({ name, state, message, init, identity })),
  );

  // Every sandbox exists once, and is registered once.
  expect(seen.map(({ name }) => name).toSorted()).toEqual(names.toSorted());
  const identities = await drover.json<{ sandboxId: string; thumbprint: string }[]>(['identity', 'ls']);
  expect(identities.map(({ sandboxId }) => sandboxId).toSorted()).toEqual(seen.map(({ id }) => id).toSorted());
  for (const { id, identity } of seen) expect(identities.find(({ sandboxId }) => sandboxId === id)?.thumbprint).toBe(identity.thumbprint);

  const lines = (await readFile(join(shared, 'said'), 'utf8')).split('\n').filter((line) => line !== '');
  const counts = new Map<string, number>();
  for (const line of lines) counts.set(line, (counts.get(line) ?? 0) + 1);
  // I-32: no post-init and no command ran twice in one start.
  expect([...counts].filter(([, times]) => times > 1)).toEqual([]);
  // No command began before its plan was done.
  expect(lines.filter((line) => line.startsWith('unplanned'))).toEqual([]);
  const at = new Map(lines.map((line, index) => [line, index]));
  for (const line of lines.filter((said) => said.startsWith('ran '))) {
    const planned = at.get(line.replace('ran', 'planned'));
    expect(planned, line).toBeDefined();
    expect(planned).toBeLessThan(at.get(line) ?? -1);
  }
  // The last start of each sandbox has run its command.
  for (const name of names) expect(lines.filter((line) => line.startsWith(`ran ${name} `)).length).toBeGreaterThan(0);
  // Kills met later starts too.
  expect(lines.filter((line) => line.startsWith('planned ')).length).toBeGreaterThan(count);
});

function randomFrom(from: number): () => number {
  let state = from >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}
