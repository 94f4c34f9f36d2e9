import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { silentLogger } from '@drover/foundation/log';
import { expect, onTestFinished, test } from 'vitest';
import { daemon, Supervisor, type DaemonSpec, type ProcessSpec } from './index.ts';
import { isRunning } from './testing/programs.ts';

const idle = 'setInterval(() => {}, 1000)';

function program(name: string, source = idle, spec: Partial<DaemonSpec> = {}): ProcessSpec {
  return daemon({ name, argv: [process.execPath, '-e', source], env: {}, ...spec }, silentLogger);
}

function supervisor(): Supervisor {
  const made = new Supervisor({ logger: silentLogger });
  onTestFinished(async () => await made.stop());
  return made;
}

test('G-6, G-7: restarts exactly one process; an unknown name, or a restart during shutdown, does nothing', async () => {
  const all = supervisor();
  const [a, b] = [all.start(program('a')), all.start(program('b'))];
  await Promise.all([a.waitFor('running'), b.waitFor('running')]);
  const before = all.status().map((s) => s.pid);
  expect(all.restart('a')).toBe(true);
  await expect.poll(() => a.status().state === 'running' && a.status().pid !== before[0]).toBe(true);
  expect(b.status().pid).toBe(before[1]);
  expect(all.restart('c')).toBe(false);
  expect(() => all.start(program('a'))).toThrow(expect.objectContaining({ code: 'failed-precondition' }));
  const stopped = all.stop();
  expect(all.restart('b')).toBe(false);
  expect(all.reload('b')).toBe(false);
  await stopped;
  expect(all.status().map((s) => s.state)).toEqual(['stopped', 'stopped']);
});

test('G-8: signals reload and restart the processes of the plan; ten requests are one restart', async () => {
  const all = supervisor();
  const lines: string[] = [];
  const reloading = `process.on('SIGHUP', () => console.log('reloaded')); console.log('up'); ${idle}`;
  const a = all.start(program('a', reloading, { onLine: (l) => lines.push(l), policy: { reloadSignal: 'SIGHUP' } }));
  const b = all.start(program('b'));
  await b.waitFor('running');
  await expect.poll(() => lines).toEqual(['up']);
  using _signals = all.onSignals({ SIGUSR2: { reload: ['a', 'b'], restart: ['b', 'unknown'] } });
  for (let i = 0; i < 10; i++) process.emit('SIGUSR2');
  await expect.poll(() => lines).toEqual(['up', 'reloaded']);
  await expect.poll(() => b.status()).toMatchObject({ restarts: 1, state: 'running' });
  expect(a.status().restarts).toBe(0);
});

test('G-8: a shutdown clears the requests', async () => {
  const all = supervisor();
  const a = all.start(program('a'));
  await a.waitFor('running');
  using _signals = all.onSignals({ SIGUSR2: { restart: ['a'] } });
  process.emit('SIGUSR2');
  await all.stop();
  expect(a.status()).toMatchObject({ state: 'stopped', restarts: 0 });
});

test('G-10: ends with the largest exit code when every process has ended and none will be restarted', async () => {
  const all = supervisor();
  all.start(program('a', 'process.exit(3)', { policy: { restart: 'never' } }));
  all.start(program('b', 'setTimeout(() => process.exit(2), 50)', { policy: { restart: 'never' } }));
  expect(await all.ended).toBe(3);
});

test('G-10: a graceful stop does not hide an earlier crash', async () => {
  const all = supervisor();
  const crash = `if (process.env.DROVER_LAST_END === undefined) process.exit(9); process.on('SIGTERM', () => process.exit(0)); ${idle}`;
  const a = all.start(program('a', crash, { policy: { backoffBaseMs: 1 } }));
  all.start(program('b'));
  await expect.poll(() => a.status()).toMatchObject({ restarts: 1, state: 'running' });
  await all.stop();
  expect(await all.ended).toBe(9);
});

test('S-7: a daemon reports its health over the channel to its supervisor, and ends when the supervisor is killed', async () => {
  const index = JSON.stringify(new URL('./index.ts', import.meta.url).href);
  const log = JSON.stringify(import.meta.resolve('@drover/foundation/log'));
  const child = `
    import { connectToSupervisor } from ${index};
    const ended = connectToSupervisor(process.env, () => process.env.PROBLEM);
    ended.addEventListener('abort', () => process.exit(0));
    console.log(process.pid);
    setInterval(() => {}, 1000);`;
  const parent = `
    import { daemon, Supervisor } from ${index};
    import { silentLogger } from ${log};
    const all = new Supervisor({ logger: silentLogger, onChange: ({ name, state }) => console.log(name, state) });
    for (const [name, env] of [['well', {}], ['ill', { PROBLEM: 'disk' }]])
      all.start(daemon({ name, env, argv: [process.execPath, '--conditions=development', '--input-type=module', '-e', ${JSON.stringify(child)}],
        health: 'channel', onLine: (pid) => console.log('pid', pid) }, silentLogger));`;
  const process_ = spawn(process.execPath, ['--conditions=development', '--input-type=module', '-e', parent], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(() => void process_.kill('SIGKILL'));
  const lines: string[] = [];
  createInterface(process_.stdout).on('line', (line) => lines.push(line));
  await expect.poll(() => lines).toEqual(expect.arrayContaining(['well running', 'ill degraded']));
  const pids = lines.flatMap((line) => /^pid (\d+)$/.exec(line)?.[1] ?? []).map(Number);
  expect(pids).toHaveLength(2);
  process_.kill('SIGKILL');
  await once(process_, 'exit');
  for (const pid of pids) await expect.poll(async () => await isRunning(pid)).toBe(false);
});

test('G-5, G-10: as PID 1 it reaps every orphan, and ends with the largest exit code of its daemons', async () => {
  const index = JSON.stringify(new URL('./index.ts', import.meta.url).href);
  const log = JSON.stringify(import.meta.resolve('@drover/foundation/log'));
  // Each inner shell leaves a background child, which init adopts. The daemon ends well when all of them have been reaped.
  const left = 'grep -l "Name:.sleep" /proc/[0-9]*/status 2>/dev/null | wc -l';
  const orphans = `for i in $(seq 1 30); do (sh -c "sleep 0.1 & exit 0"); done; until [ $(${left}) = 0 ]; do sleep 0.05; done; exit 5`;
  const init = `
    import { daemon, isDaemon, reapOrphans, Supervisor } from ${index};
    import { silentLogger } from ${log};
    const reaper = reapOrphans(isDaemon);
    const all = new Supervisor({ logger: silentLogger });
    const env = { PATH: process.env.PATH };
    for (const [name, script] of [['orphans', ${JSON.stringify(orphans)}], ['other', 'exit 3']])
      all.start(daemon({ name, argv: ['/bin/sh', '-c', script], env, policy: { restart: 'never' } }, silentLogger));
    process.exitCode = process.pid === 1 ? await all.ended : 99;
    reaper[Symbol.dispose]();`;
  const argv = [
    '--pid',
    '--fork',
    '--mount-proc',
    '--kill-child',
    process.execPath,
    '--conditions=development',
    '--input-type=module',
    '-e',
    init,
  ];
  const child = spawn('unshare', argv, { stdio: ['ignore', 'inherit', 'inherit'] });
  onTestFinished(() => void child.kill('SIGKILL'));
  expect(await once(child, 'exit')).toEqual([5, null]);
});
