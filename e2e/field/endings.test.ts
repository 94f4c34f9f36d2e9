import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, isAlive, TestDrover, type Spec } from '../harness/index.ts';

interface SandboxJson {
  readonly id: string;
  readonly state: string;
  readonly reason: string;
  readonly message: string;
  readonly exitCode?: number;
}

interface EventJson {
  readonly type: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/** One ending of a sandbox, and its expected descriptions. */
interface Ending {
  readonly name: string;
  readonly command: readonly string[];
  readonly spec?: Spec;
  readonly end?: (id: string) => Promise<unknown>;
  readonly shown: string;
  readonly reason: string;
  readonly message: string;
  /** The status of `drover sandbox wait`; absent where it depends on the progress of the command. */
  readonly status?: number;
}

let drover: TestDrover;
const idle = ['sleep', '1d'];
const host = (spec: Spec): Spec => ({ ...spec, image: 'host' });

afterAll(async () => await drover[Symbol.asyncDispose]());

const stateFile = (...path: readonly string[]): string => join(drover.data, 'host', ...path);

async function killInit(id: string): Promise<void> {
  const pid = Number(await readFile(stateFile('sandboxes', id, 'init.pid'), 'utf8'));
  process.kill(pid, 'SIGKILL');
  await eventually('its init has exited', () => !isAlive(pid));
}

/** Simulates a restart of the host: the sandbox dies without a report, and the next agent finds a different boot id. */
async function restartHost(id: string): Promise<void> {
  await drover.interrupt();
  await killInit(id);
  const path = stateFile('records', `${id}.json`);
  const record = JSON.parse(await readFile(path, 'utf8')) as object;
  await writeFile(path, JSON.stringify({ ...record, bootId: '00000000-0000-4000-8000-000000000000' }));
  await drover.up(['--pool', '10.233.64.0/18']);
}

const endings: readonly Ending[] = [
  {
    name: 'own',
    command: ['sh', '-c', 'exit 3'],
    shown: 'stopped (3)',
    reason: 'exited',
    message: 'the command ended with status 3',
    status: 3,
  },
  {
    name: 'asked',
    command: ['sh', '-c', 'trap "exit 0" TERM; echo up; while :; do sleep 0.1; done'],
    end: async () => {
      await eventually('the command prints', async () => (await drover.logs('asked')) === 'up\n');
      await drover.stop('asked');
    },
    shown: 'stopped (0)',
    reason: 'stopped',
    message: 'stopped by admin',
    status: 0,
  },
  {
    name: 'aged',
    command: idle,
    spec: host({ ttlSeconds: 5n }),
    shown: 'stopped (ttl)',
    reason: 'ttl',
    message: 'stopped at the end of its time to live (5s)',
  },
  {
    name: 'bored',
    command: idle,
    spec: host({ idleStopSeconds: 1n }),
    shown: 'stopped (idle)',
    reason: 'idle',
    message: 'stopped: nothing happened in it for 1 s',
    status: 143,
  },
  {
    name: 'hungry',
    command: ['tail', '/dev/zero'],
    spec: host({ resources: { memoryBytes: 64n * 1024n * 1024n } }),
    shown: 'failed (out of memory)',
    reason: 'out-of-memory',
    message: 'ended for want of memory: its limit is 67108864 bytes; give it more with --memory',
    status: 137,
  },
  {
    name: 'contained',
    command: idle,
    end: async () => await drover.run(['sandbox', 'contain', 'contained', '--kill', '--reason', 'phones home']),
    shown: 'stopped (contained)',
    reason: 'contained',
    message: 'killed by admin to contain it: phones home',
    status: 137,
  },
  {
    name: 'struck',
    command: idle,
    end: killInit,
    shown: 'stopped (killed)',
    reason: 'killed',
    message: 'its init was killed from outside the sandbox',
    status: 137,
  },
  {
    name: 'rebooted',
    command: idle,
    end: restartHost,
    shown: 'failed (host-restarted)',
    reason: 'host-restarted',
    message: 'its host restarted while it ran',
    status: 125,
  },
];

let expired: ReturnType<TestDrover['run']>;

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', '10.233.64.0/18']);
  // The sandboxes that end without an action run concurrently.
  await Promise.all(endings.map(async ({ name, command, spec }) => await drover.create(name, command, spec ?? { image: 'host' })));
  expired = drover.run(['run', '--name', 'told', '--ttl', '5s', 'host', '--', ...idle]);
});

describe('an attached run reports an ending that its command did not cause', () => {
  test('at the end of its time to live', async () => {
    const { code, stderr } = await expired;
    expect(code).not.toBe(0);
    expect(stderr).toContain('stopped at the end of its time to live (5s)\n');
  });

  test('after a stop by a person, to every attached client, also when the command ends with 0', async () => {
    const script = 'trap "exit 0" TERM; echo up; while :; do sleep 0.1; done';
    const running = drover.run(['run', '--name', 'halted', 'host', '--', 'sh', '-c', script]);
    await eventually('the command prints', async () => (await drover.logs('halted').catch(() => '')) === 'up\n');
    const attached = drover.spawn(['attach', '--no-stdin', 'halted']);
    await new Promise<void>((resolve) => attached.stdout.once('data', () => resolve()));
    await drover.stop('halted');
    expect(await attached).toMatchObject({ exitCode: 0, stderr: expect.stringContaining('halted ended: stopped by admin\n') });
    expect(await running).toMatchObject({
      code: 0,
      stdout: 'up\n',
      stderr: expect.stringContaining('halted ended: stopped by admin\n'),
    });
  });

  test('is silent after an exit of the command', async () => {
    const { code, stderr } = await drover.run(['run', '--rm', 'host', '--', 'sh', '-c', 'exit 9']);
    expect({ code, stderr }).toEqual({ code: 9, stderr: '' });
  });
});

describe('every command shows the same reason for the end of a sandbox', () => {
  test.each(endings)('$name: $reason', async ({ name, end, shown, reason, message, status }) => {
    const { id } = await drover.sandbox<SandboxJson>(name);
    if (end !== undefined) {
      await drover.saw(id, ['init'], (types) => types.includes('InitCompleted'));
      await end(id);
    }
    const waited = await drover.run(['sandbox', 'wait', name]);
    const row = await drover.sandbox<SandboxJson>(name);
    expect(waited).toMatchObject({ code: status ?? row.exitCode, stdout: `${shown}: ${message}\n` });

    expect([row.state, row.reason, row.message]).toEqual([shown.split(' ')[0], reason, message]);
    // A command that its host's restart killed has no status.
    expect(row.exitCode === undefined).toBe(reason === 'host-restarted');
    const ls = (await drover.run(['sandbox', 'ls'])).stdout.split('\n').find((line) => line.startsWith(`${name} `)) ?? '';
    expect(ls).toContain(shown);
    expect((await drover.run(['sandbox', 'get', name])).stdout).toMatch(new RegExp(`^state: +${shown.replaceAll(/[()]/g, '\\$&')}`, 'm'));
    const events = (await drover.run(['events', '--subject', name, '--kind', 'sandbox', '-o', 'json'])).stdout.trim().split('\n');
    const ended = events.map((line) => JSON.parse(line) as EventJson).findLast(({ type }) => type === 'SandboxStateChanged');
    expect(ended?.data).toMatchObject({ to: row.state, reason, message });
  });

  test('a deleted sandbox names the person who removed it', async () => {
    const { id } = await drover.begin<SandboxJson>('gone', idle);
    await drover.remove('gone');
    expect(await drover.sandbox<SandboxJson>(id)).toMatchObject({ state: 'deleted', reason: 'removed', message: 'removed by admin' });
  });
});
