import { once } from 'node:events';
import { connect } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, TestDrover, type Finished } from '../harness/index.ts';

let drover: TestDrover;

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', '10.237.64.0/18', '--name', 'near', '--host-ttl', '3s', '--lost-grace', '1h']);
}, 120_000);

afterAll(async () => {
  await drover?.[Symbol.asyncDispose]();
});

async function hostIs(state: string): Promise<void> {
  await eventually(
    `the host is ${state}`,
    async () => (await drover.host<{ state: string }>('near').catch(() => undefined))?.state === state,
  );
}

/** Whether the server accepts connections. */
async function listens(server: string): Promise<boolean> {
  const { hostname, port } = new URL(server);
  const socket = connect(Number(port), hostname);
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

test('while a control plane is killed and restarted, each run -d waits for it and reports the true outcome', async () => {
  const { server } = await drover.connection();
  const begin = async (name: string): Promise<Finished> => await drover.run(['run', '-d', '--name', name, 'host', '--', 'sleep', '1000']);
  const during = ['a', 'b'].map(begin);
  process.kill(await drover.pidOf('serve'), 'SIGKILL');
  await eventually('the port is closed', async () => !(await listens(server)));
  const after = ['c', 'd'].map(begin);
  const outcomes = await Promise.all([...during, ...after]);
  const names = ['a', 'b', 'c', 'd'];
  expect(outcomes.map(({ code, stdout }) => ({ code, stdout }))).toEqual(names.map((name) => ({ code: 0, stdout: `${name}\n` })));
  expect((await drover.sandboxes<{ name: string }>()).map(({ name }) => name).toSorted()).toEqual(names);
  await drover.remove(...names);
});

describe('L-15: a host that is down', () => {
  test('new commands fail with its name, and an attached run continues when the host is ready again', async () => {
    const script = 'echo begun; while ! [ -e /tmp/go ]; do sleep 0.1; done; echo done; exit 7';
    const attached = drover.spawn(['run', '--name', 'waits', 'host', '--', 'sh', '-c', script]);
    let shown = '';
    attached.stdout.on('data', (data: Buffer) => (shown += data.toString()));
    let notes = '';
    attached.stderr.on('data', (data: Buffer) => (notes += data.toString()));
    await eventually('the command prints', () => shown === 'begun\n');
    const agent = await drover.pidOf('agent');
    process.kill(agent, 'SIGSTOP');
    try {
      await hostIs('down');
      const commands = [
        ['exec', 'waits', '--', 'true'],
        ['exec', 'ls', 'waits'],
        ['exec', 'kill', 'waits', 'some-exec'],
        ['cp', 'waits:/etc/hostname', '-'],
        ['logs', 'waits'],
        ['doctor', '--host', 'near'],
      ];
      for (const outcome of await Promise.all(commands.map(async (args) => await drover.run(args, { timeoutMs: 30_000 })))) {
        expect(outcome.code).not.toBe(0);
        expect(outcome.stderr).toMatch(/^drover: host near is down: [^\n]+\n {2}hint: [^\n]*drover host ls[^\n]*\n$/);
      }
      await eventually('the attached run prints that the host is down', () => /host near is down.*reconnecting/.test(notes));
    } finally {
      process.kill(agent, 'SIGCONT');
    }
    await hostIs('ready');
    expect((await drover.exec('waits', ['touch', '/tmp/go'])).code).toBe(0);
    const { exitCode } = await attached;
    expect({ exitCode, shown }).toEqual({ exitCode: 7, shown: 'begun\ndone\n' });
  });
});
