import { existsSync } from 'node:fs';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, TestDrover } from './harness/index.ts';

/** The secret value, which must not leak in any encoding. */
const canary = 'canary-3f1c9a7be2d04856';
const spellings = [canary, Buffer.from(canary).toString('base64').slice(0, 24), Buffer.from(canary).toString('hex')];
const file = `-----BEGIN KEY-----\n${canary}\n-----END KEY-----\n`;
const up = ['--pool', '10.219.0.0/16'];

let drover: TestDrover;
beforeAll(async () => {
  drover = await TestDrover.start(up);
  await writeFile(join(drover.directory, 'config', 'key'), file, { mode: 0o600 });
});
afterAll(async () => await drover[Symbol.asyncDispose]());

const run = async (...args: readonly string[]): Promise<Awaited<ReturnType<TestDrover['run']>>> =>
  await drover.run(args, { env: { TOKEN: canary } });
const inside = async (name: string, script: string): Promise<string> => (await drover.exec(name, ['sh', '-c', script])).stdout;
const get = async (name: string): Promise<{ state: string; reason: string; exitCode?: number }> => await drover.sandbox(name);

describe('R-19: secrets', () => {
  const flags = (): string[] => ['--secret', 'TOKEN', '--secret-file', `KEY=@${join(drover.directory, 'config', 'key')}`];
  /** Prints hashes, so that no output contains the canary itself. */
  const check =
    'printf %s "$TOKEN" | sha256sum; sha256sum < /run/secrets/KEY; stat -c "%a %u %g" /run/secrets/KEY; stat -f -c %T /run/secrets';
  const hash = async (text: string): Promise<string> => (await execa('sha256sum', [], { input: text })).stdout;
  const wanted = async (owner: string): Promise<string> => `${await hash(canary)}\n${await hash(file)}\n400 ${owner}\ntmpfs\n`;

  test('reach the main process and execs, as variables and as files on a tmpfs with the user’s ownership', async () => {
    const { code, stdout } = await run('run', '--rm', '--user', '1000:1000', ...flags(), 'host', '--', 'sh', '-c', check);
    expect({ code, stdout }).toEqual({ code: 0, stdout: await wanted('1000 1000') });
    const script = join(drover.directory, 'post-init');
    await writeFile(script, `#!/bin/sh\n{ ${check}; } > /var/tmp/prepared\n`);
    await run('run', '-d', '--name', 'keeper', ...flags(), '--post-init', script, 'host', '--', 'sleep', '1000');
    expect(await inside('keeper', check)).toBe(await wanted('0 0'));
    // The steps of the init plan have the secrets too.
    expect(await inside('keeper', 'cat /var/tmp/prepared')).toBe(await wanted('0 0'));
  });

  test('are present after each start, also when every part of Drover ended in between', async () => {
    await drover.stop('keeper');
    await drover.interrupt();
    await drover.up(up);
    await drover.restart('keeper');
    expect(await inside('keeper', check)).toBe(await wanted('0 0'));
  });

  test('are piped in through stdin, and refused where a process list would show them', async () => {
    const piped = await drover.run(
      ['run', '--rm', '-n', '--secret', 'TOKEN=-', 'host', '--', 'sh', '-c', 'printf %s "$TOKEN" | sha256sum'],
      {
        input: `${canary}\n`,
      },
    );
    expect(piped).toMatchObject({ code: 0, stdout: `${await hash(canary)}\n` });
    const { code, stderr } = await run('run', '--rm', '--secret', 'TOKEN=not-the-canary', 'host', '--', 'true');
    expect(code).toBe(125);
    expect(stderr).toMatch(/can be read by every user of this machine/);
    expect(stderr).not.toContain('not-the-canary');
  });

  test('are shown by name alone in every response, event and log', async () => {
    const shown = await drover.json<{ spec: { secrets: unknown } }>(['sandbox', 'get', 'keeper']);
    expect(shown.spec.secrets).toEqual([
      { name: 'TOKEN', target: 'environment' },
      { name: 'KEY', target: 'file' },
    ]);
    const { stdout: events } = await run('events', '--since', '0', '-o', 'json');
    expect(events).toContain('SandboxCreated');
    const { stdout: list } = await run('sandbox', 'ls', '-o', 'json');
    for (const text of [JSON.stringify(shown), events, list, await drover.log()]) {
      for (const spelling of spellings) expect(text.includes(spelling)).toBe(false);
    }
  });

  test('are in no file of the data directory, no command line, and no environment of a process outside the sandbox', async () => {
    // The search itself works: it finds the key that this test put below the same directory.
    expect(await filesWithCanary(drover.directory)).toEqual([join(drover.directory, 'config', 'key')]);
    expect(await filesWithCanary(drover.data)).toEqual([]);
    const [own, sandboxes] = [await readFile('/proc/self/environ', 'latin1'), await processesWith('environ')];
    expect(own).not.toContain(canary);
    expect(await processesWith('cmdline')).toEqual([]);
    // The sandbox's own processes have it as intended. They run in another user namespace.
    expect(sandboxes.length).toBeGreaterThan(0);
    for (const pid of sandboxes) expect(await firstUid(pid)).toBeGreaterThanOrEqual(1_000_000_000);
    const mode = (await stat(join(drover.data, 'control-plane', 'pki', 'secrets.key'))).mode;
    expect(mode & 0o777).toBe(0o600);
  });
});

describe('R-3: drover top', () => {
  test('shows the usage of each sandbox, and the CPU time of a busy one', async () => {
    await drover.begin('busy', ['sh', '-c', 'while :; do :; done'], { resources: { memoryBytes: 256n << 20n } });
    type Usage = { name: string; cpuPercent: number; memoryBytes: number; memoryLimitBytes: number; pids: number };
    // The other programs of this machine may leave the sandbox little CPU time. Wait until it gets more than a tenth.
    const [busy, keeper] = await eventually('the busy sandbox is busy', async () => {
      const usage = await drover.json<Usage[]>(['top']);
      const seen = ['busy', 'keeper'].map((name) => usage.find((one) => one.name === name));
      return (seen[0]?.cpuPercent ?? 0) > 10 ? seen : undefined;
    });
    expect(busy).toMatchObject({ memoryLimitBytes: 256 * 1024 ** 2 });
    expect(keeper?.cpuPercent).toBeLessThan(busy?.cpuPercent ?? 0);
    expect(keeper?.memoryBytes).toBeGreaterThan(1024 ** 2);
    expect(keeper?.pids).toBeGreaterThan(1);
    const { stdout } = await run('top', 'keeper');
    expect(stdout.split('\n').map((line) => line.split(/\s+/)[0])).toEqual(['NAME', 'keeper', '']);
  });

  test('reports that a sandbox does not run', async () => {
    await drover.stop('busy', 1);
    const { code, stdout, stderr } = await run('top', 'busy', '-o', 'json');
    expect({ code, stdout }).toEqual({ code: 0, stdout: '[]\n' });
    expect(stderr).toContain('busy is not running');
  });
});

describe('R-20: --idle-stop', () => {
  test('stops an idle sandbox with that reason; a sandbox that works, prints or is used keeps running', async () => {
    const sandboxes = {
      idle: 'exec sleep 1000',
      works: 'while :; do :; done',
      speaks: 'while :; do echo x; sleep 0.5; done',
      used: 'exec sleep 1000',
    };
    for (const [name, script] of Object.entries(sandboxes))
      await run('run', '-d', '--name', name, '--idle-stop', '4s', 'host', '--', 'sh', '-c', script);
    const user = drover.spawn(['exec', 'used', '--', 'sleep', '1000']);
    await eventually('the idle sandbox is stopped', async () => (await get('idle')).state === 'stopped');
    expect(await get('idle')).toMatchObject({ reason: 'idle', exitCode: 143 });
    expect(await Promise.all(['works', 'speaks', 'used'].map(async (name) => (await get(name)).state))).toEqual(Array(3).fill('running'));
    user.kill('SIGKILL');
    await eventually('the formerly used sandbox is stopped', async () => (await get('used')).reason === 'idle');
    expect(await Promise.all(['works', 'speaks'].map(async (name) => (await get(name)).state))).toEqual(Array(2).fill('running'));
    await drover.remove('idle', 'works', 'speaks', 'used');
  });

  test('holds while neither the control plane nor the agent runs, and restarts its count with a start', async () => {
    await drover.begin('alone', ['sleep', '1000'], { idleStopSeconds: 4n });
    const { id } = await drover.sandbox<{ id: string }>('alone');
    await drover.interrupt();
    // Init counts the idle time and writes its exit record. No other process is running that could.
    await eventually('the sandbox has ended', () => existsSync(join(drover.data, 'host', 'run', id, 'exit.json')));
    const endedBy = Date.now();
    await drover.up(up);
    const ended = await eventually('the control plane reports the end', async () => {
      const seen = await drover.sandbox<{ state: string; reason: string; finishedAt: string }>('alone');
      return seen.state === 'stopped' ? seen : undefined;
    });
    expect(ended.reason).toBe('idle');
    expect(Date.parse(ended.finishedAt)).toBeLessThanOrEqual(endedBy);
    await drover.restart('alone');
    await eventually('the sandbox is stopped again', async () => (await get('alone')).reason === 'idle');
  });
});

/** Returns the files below a directory, on its own file system, that hold the canary in some encoding. */
async function filesWithCanary(directory: string): Promise<readonly string[]> {
  const patterns = spellings.flatMap((spelling) => ['-e', spelling]);
  const files = ['find', directory, '-xdev', '-type', 'f', '-print0'];
  const { stdout, exitCode } = await execa('sh', ['-c', `${files.join(' ')} | xargs -0 grep -laF ${patterns.join(' ')} --`], {
    reject: false,
  });
  // xargs returns 123 when grep found no match in a batch. Any other code is a failed search.
  expect([0, 123]).toContain(exitCode);
  return stdout.split('\n').filter((line) => line !== '');
}

async function processesWith(what: 'cmdline' | 'environ'): Promise<readonly string[]> {
  const found: string[] = [];
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    // The process has exited in the meantime.
    const text = await readFile(`/proc/${pid}/${what}`, 'latin1').catch(() => '');
    if (spellings.some((spelling) => text.includes(spelling))) found.push(pid);
  }
  return found;
}

/** Returns the host's uid of root in the process's user namespace; 0 in the host's own namespace. */
async function firstUid(pid: string): Promise<number> {
  const map = await readFile(`/proc/${pid}/uid_map`, 'utf8');
  return Number(map.trim().split(/\s+/)[1]);
}
