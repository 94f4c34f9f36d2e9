import { randomInt } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, isAlive, TestDrover, tracesOf } from './harness/index.ts';

interface SandboxJson {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly message: string;
  readonly startCount: string;
  readonly identity: { readonly verdict: string; readonly thumbprint: string };
  readonly init: { readonly state: string };
}

const seed = Number(process.env['DROVER_TEST_SEED'] ?? randomInt(2 ** 31));
const random = randomFrom(seed);
const kills = 50;
const count = 20;
const pool = ['--pool', '10.222.192.0/18'];
const names = Array.from({ length: count }, (_, index) => `c${index}`);

let drover: TestDrover;
let shared: string;

const sandboxes = async (): Promise<readonly SandboxJson[]> => await drover.json<SandboxJson[]>(['sandbox', 'ls']);

/** Which start of which sandbox a line is about: init's own start time tells starts apart. */
const start = "$(cut -d' ' -f22 /proc/1/stat)";

beforeAll(async () => {
  console.info(`chaos: DROVER_TEST_SEED=${seed}`);
  drover = await TestDrover.start(pool);
  shared = join(drover.directory, 'shared');
  await mkdir(shared);
  await execa('chmod', ['777', shared]);
  await drover.interrupt();
  await drover.up([...pool, '--allow-mount', shared]);
});

afterAll(async () => {
  await using instance = drover;
  const left = await tracesOf(instance);
  await instance[Symbol.asyncDispose]();
  expect(await left()).toEqual([]);
});

test(`I-12, I-24, I-32: ${count} sandboxes start, stop and run their plans while the control plane is killed ${kills} times`, {
  timeout: 480_000,
}, async () => {
  const setups = await Promise.all(
    names.map(async (name) => {
      const path = join(drover.directory, `${name}.yaml`);
      // A plan that takes its time, so that kills meet it at every step.
      const script = `#!/bin/sh\necho "begun ${name} ${start}" >> /shared/said\nsleep 0.$((RANDOM % 5 + 1)) 2>/dev/null || sleep 0.3\necho "planned ${name} ${start}" >> /shared/said\n`;
      await writeFile(path, JSON.stringify({ files: [{ path: '/etc/chaos', content: `${name}\n` }], postInit: script }));
      return path;
    }),
  );
  let killed = 0;
  const over = new AbortController();

  const killing = (async () => {
    while (killed < kills) {
      await delay(300 + random() * 1500);
      const pid = await drover.pidOf('serve');
      process.kill(pid, 'SIGKILL');
      killed++;
      await eventually('serve is dead', () => !isAlive(pid));
    }
    over.abort();
  })();

  // Each sandbox's own life: made, then stopped and started again for as long as there are kills.
  const living = names.map(async (name, index) => {
    const command = `echo "ran ${name} ${start}" >> /shared/said; cat /etc/chaos >/dev/null || echo "unplanned ${name} ${start}" >> /shared/said; exec sleep 600`;
    const setup = setups[index] ?? '';
    const create = ['sandbox', 'create', '--name', name, '--setup', setup, '--volume', `${shared}:/shared`, 'host', 'sh', '-c', command];
    for (;;) {
      const { code, stderr } = await drover.run(create, { timeoutMs: 120_000 });
      if (code === 0 || /there is a sandbox named/.test(stderr)) break;
      if (over.signal.aborted) throw new Error(`${name} could not be made: ${stderr}`);
    }
    while (!over.signal.aborted) {
      await delay(500 + random() * 4000);
      // What a kill cuts off is a failed command, told as such; the next one goes on from what is.
      await drover.run(['sandbox', random() < 0.5 ? 'stop' : 'start', name], { timeoutMs: 120_000 });
    }
  });
  await killing;
  await Promise.all(living);
  expect(killed).toBe(kills);

  for (const name of names) {
    await eventually(
      `${name} is wanted running`,
      async () => (await drover.run(['sandbox', 'start', name], { timeoutMs: 120_000 })).code === 0,
      120_000,
    );
  }
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

  // Every sandbox is there once, and registered once.
  expect(seen.map(({ name }) => name).toSorted()).toEqual(names.toSorted());
  const identities = await drover.json<{ sandboxId: string; thumbprint: string }[]>(['identity', 'ls']);
  expect(identities.map(({ sandboxId }) => sandboxId).toSorted()).toEqual(seen.map(({ id }) => id).toSorted());
  for (const { id, identity } of seen) expect(identities.find(({ sandboxId }) => sandboxId === id)?.thumbprint).toBe(identity.thumbprint);

  const lines = (await readFile(join(shared, 'said'), 'utf8')).split('\n').filter((line) => line !== '');
  const counts = new Map<string, number>();
  for (const line of lines) counts.set(line, (counts.get(line) ?? 0) + 1);
  // I-32: no post-init and no command ran twice in one start.
  expect([...counts].filter(([, times]) => times > 1)).toEqual([]);
  // Nor did a command begin before its plan was done.
  expect(lines.filter((line) => line.startsWith('unplanned'))).toEqual([]);
  const at = new Map(lines.map((line, index) => [line, index]));
  for (const line of lines.filter((said) => said.startsWith('ran '))) {
    const planned = at.get(line.replace('ran', 'planned'));
    expect(planned, line).toBeDefined();
    expect(planned).toBeLessThan(at.get(line) ?? -1);
  }
  // The last start of each has run its command: it is in the log that it began.
  for (const name of names) expect(lines.filter((line) => line.startsWith(`ran ${name} `)).length).toBeGreaterThan(0);
});

function randomFrom(from: number): () => number {
  let state = from >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}
