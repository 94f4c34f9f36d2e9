import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { eventually, isAlive, readyStandbys, TestDrover, tracesOf } from './harness/index.ts';

interface HostRecord {
  readonly container?: string;
  readonly pid?: number;
}

describe('a host with standbys', () => {
  let drover: TestDrover;
  let shared: string;

  beforeAll(async () => {
    shared = await mkdtemp(join(tmpdir(), 'drover-shared-'));
    drover = await TestDrover.start(['--pool', '10.220.0.0/16', '--standbys', '2', '--allow-mount', shared]);
  });
  // A failed test leaves its sandboxes behind.
  beforeEach(async () => await drover.remove(...(await drover.sandboxes<{ id: string }>()).map(({ id }) => id)));
  afterAll(async () => {
    const left = drover === undefined ? undefined : await tracesOf(drover);
    await drover[Symbol.asyncDispose]();
    await rm(shared, { recursive: true, force: true });
    expect(await left?.()).toEqual([]);
  });

  const allReady = async (): Promise<void> =>
    void (await eventually('two standbys are ready', async () => (await readyStandbys(drover.data)) === 2));
  /** Returns the host's own records of sandboxes and standbys. */
  const records = async (): Promise<ReadonlyMap<string, HostRecord>> => {
    const directory = join(drover.data, 'host', 'sandboxes');
    const found = new Map<string, HostRecord>();
    for (const id of await readdir(directory)) {
      const text = await readFile(join(directory, id, 'record.json'), 'utf8').catch(() => undefined);
      if (text !== undefined) found.set(id, JSON.parse(text) as HostRecord);
    }
    return found;
  };
  const recordOf = async (name: string): Promise<HostRecord | undefined> => {
    const { id } = await drover.sandbox<{ id: string }>(name);
    return (await records()).get(id);
  };
  const ok = async (...args: readonly string[]): Promise<string> => {
    const { code, stdout, stderr } = await drover.run(args);
    // A slow start prints its progress on stderr.
    expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
    return stdout;
  };

  test('assigns a standby to the next sandbox, with its image, name, limits, volume and secret, and every command works on it', async () => {
    await allReady();
    const waiting = await records();
    await writeFile(join(shared, 'note'), 'from the host\n');
    const secret = ['--secret-file', 'token=-'];
    const limits = ['--memory', '64M', '--pids', '100', '--cpus', '0.5', '--disk', '64M'];
    const script = 'hostname; cat /data/note /run/secrets/token; id -u; echo ready; exec sleep 600';
    const created = await drover.run(
      ['run', '-d', '--name', 'ahead', '--volume', `${shared}:/data:ro`, ...secret, ...limits, 'host', '--', 'sh', '-c', script],
      { input: 'sesame\n' },
    );
    expect({ code: created.code, stderr: created.code === 0 ? '' : created.stderr }).toEqual({ code: 0, stderr: '' });
    await eventually('the post-init has printed', async () => (await drover.logs('ahead')).includes('ready'));
    expect(await ok('logs', 'ahead')).toBe('ahead\nfrom the host\nsesame\n0\nready\n');
    const { container, pid } = (await recordOf('ahead')) ?? {};
    expect(waiting.get(container ?? '')?.pid).toBe(pid);
    expect(pid).toBeTypeOf('number');

    expect(await ok('exec', 'ahead', '--', 'sh', '-c', 'echo $$ > /tmp/x && cat /proc/1/comm')).not.toBe('');
    await ok('cp', `ahead:/tmp/x`, join(shared, 'x'));
    expect(await readFile(join(shared, 'x'), 'utf8')).toMatch(/^\d+\n$/);
    await drover.stop('ahead');
    await drover.restart('ahead');
    expect((await drover.exec('ahead', ['cat', '/tmp/x'])).stdout).toMatch(/^\d+\n$/);
    await drover.remove('ahead');
  });

  test('R-10: offers its memory without the share of the standbys', async () => {
    const [host] = await drover.hosts<{ capacity: { memoryBytes: number } }>();
    expect(host?.capacity.memoryBytes).toBe(totalmem() - 2 * 20 * 1024 ** 2);
  });

  test('replaces an assigned standby', async () => {
    await allReady();
    expect(await ok('run', '--rm', 'host', '--', 'echo', 'at once')).toBe('at once\n');
    await allReady();
  });

  test('R-9: kill -9 of its agent ends the standbys, keeps the sandbox made from one, and starts new standbys', async () => {
    await allReady();
    await drover.begin('stays', ['sleep', '600']);
    const kept = await recordOf('stays');
    expect(kept?.container).toBeTypeOf('string');
    await allReady();
    const before = await records();
    const waiting = [...before].filter(([, { pid }]) => pid !== kept?.pid);
    expect(waiting).toHaveLength(2);
    const agent = await drover.pidOf('agent');
    process.kill(agent, 'SIGKILL');
    for (const [, { pid }] of waiting) await eventually(`${pid} has ended`, () => !isAlive(pid ?? 0));
    await eventually('the host has new standbys', async () => {
      const now = await records();
      return (await readyStandbys(drover.data)) === 2 && waiting.every(([id]) => !now.has(id));
    });
    // The exec may print that its connection broke with the agent and was restored.
    expect(await drover.run(['exec', 'stays', '--', 'echo', 'still here'])).toMatchObject({ code: 0, stdout: 'still here\n' });
    expect((await recordOf('stays'))?.pid).toBe(kept?.pid);
    await drover.remove('stays');
  });
});
