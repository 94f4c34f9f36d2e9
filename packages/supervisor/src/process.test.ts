import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { PassThrough } from 'node:stream';
import { FakeClock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { afterEach, describe, expect, test } from 'vitest';
import { limits } from './limits.ts';
import { logLines } from './output.ts';
import { lastEndVariable, SupervisedProcess, type ProcessSpec, type SupervisedProcessOptions } from './process.ts';
import { Supervisor } from './supervisor.ts';

const made: SupervisedProcess[] = [];
afterEach(async () => {
  for (const child of made.splice(0)) {
    await child.stop();
  }
});

function node(program: string, spec: Partial<ProcessSpec> = {}, options: Partial<SupervisedProcessOptions> = {}): SupervisedProcess {
  const child = new SupervisedProcess(
    { name: 'child', argv: [process.execPath, '-e', program], env: {}, ...spec },
    { logger: silentLogger, ...options },
  );
  made.push(child);
  return child;
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + 10_000;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`never came true: ${condition.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function isAlive(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z');
  return !stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z');
}

describe('a process under supervision', () => {
  test('is running once its probe passes, and not before', async () => {
    let ready = false;
    const child = node('setInterval(() => {}, 1000)', {
      probeEveryMs: 5,
      probe: async () => {
        if (!ready) throw new Error('not yet');
      },
    });
    child.start();
    await until(() => child.status().lastError === 'not yet');
    expect(child.status().state).not.toBe('running');
    ready = true;
    await child.waitFor('running');
    expect(child.status()).toMatchObject({ state: 'running', restarts: 0, lastHealthy: expect.any(Number) });
  });

  test('S-6: that keeps crashing is restarted later and later, until its circuit opens; then again after the cool-down', async () => {
    const clock = new FakeClock();
    const announced: string[] = [];
    const child = node('process.exit(3)', {}, { clock, onChange: (_, what) => what && announced.push(what) });
    child.start();
    for (let i = 0; i < 5; i++) {
      await child.waitFor('restarting');
      expect(child.status().lastExit).toMatchObject({ code: 3 });
      await clock.advance(2 ** i * 1000);
    }
    await child.waitFor('circuit-open');
    expect(announced.filter((a) => a === 'died')).toHaveLength(6);
    expect(announced.filter((a) => a === 'circuit-open')).toHaveLength(1);
    await clock.advance(limits.coolDownMs);
    await child.waitFor('restarting');
    expect(child.status().restarts).toBe(6);
  });

  test('S-6: that ignores SIGTERM is killed after its grace', async () => {
    const clock = new FakeClock();
    const lines: string[] = [];
    const child = node(
      "process.on('SIGTERM', () => console.log('no')); console.log('up'); setInterval(() => {}, 1000)",
      { onLine: (l) => lines.push(l) },
      { clock },
    );
    child.start();
    await until(() => lines.includes('up'));
    const stopped = child.stop();
    await until(() => lines.includes('no'));
    expect(child.status().state).toBe('stopping');
    await clock.advance(limits.stopGraceMs);
    await stopped;
    expect(child.status()).toMatchObject({ state: 'stopped', pid: 0, lastExit: { signal: 'SIGKILL' } });
  });

  test('takes what it started with it, when it is stopped and when it dies', async () => {
    for (const end of ['stop', 'die'] as const) {
      const lines: string[] = [];
      const grandchild =
        "require('node:child_process').spawn(process.execPath, ['-e', 'process.on(`SIGTERM`, () => {}); setInterval(() => {}, 1000)'], { stdio: 'inherit' })";
      const child = node(`console.log(${grandchild}.pid); setInterval(() => {}, 1000)`, { onLine: (l) => lines.push(l) });
      child.start();
      await until(() => lines.length > 0);
      const pid = Number(lines[0]);
      expect(await isAlive(pid)).toBe(true);
      if (end === 'stop') await child.stop();
      else process.kill(child.status().pid, 'SIGKILL');
      await until(async () => !(await isAlive(pid)));
    }
  });

  test('G-11: has the environment it was given and no other', async () => {
    const lines: string[] = [];
    node('console.log(JSON.stringify(process.env))', { env: { ONLY: 'this' }, onLine: (l) => lines.push(l) }).start();
    await until(() => lines.length > 0);
    expect(JSON.parse(lines[0] ?? '')).toEqual({ ONLY: 'this' });
  });

  test('knows, when it is restarted, how the process before it ended', async () => {
    const lines: string[] = [];
    const { promise, resolve } = Promise.withResolvers<void>();
    const child = node(`console.log(process.env.${lastEndVariable}); setInterval(() => {}, 1000)`, {
      env: {},
      onLine: (line) => lines.push(line) > 1 && resolve(),
      policy: { backoffBaseMs: 1 },
    });
    child.start();
    await until(() => lines.length > 0);
    process.kill(child.status().pid, 'SIGABRT');
    await promise;
    expect(lines).toEqual(['undefined', 'SIGABRT']);
    await child.stop();
  });

  test('G-11: that floods its output is not held up, nor is the log flooded', async () => {
    const lines: string[] = [];
    const child = node("for (let i = 0; i < 200000; i++) console.log('line', i); process.exitCode = 7", { onLine: (l) => lines.push(l) });
    child.start();
    await child.waitFor('restarting');
    expect(child.status().lastExit?.code).toBe(7);
    // Some seconds' worth on a slow machine, nowhere near what was written.
    expect(lines.length).toBeLessThanOrEqual(limits.linesPerSecond * 20);
  });

  test('whose program does not exist is tried again like one that dies, and says why', async () => {
    const child = node('', { argv: ['/nonexistent/program'] }, { clock: new FakeClock() });
    child.start();
    await child.waitFor('restarting');
    expect(child.status().lastError).toContain('ENOENT');
  });

  test('that was let go of runs on', async () => {
    const child = node('setInterval(() => {}, 1000)');
    child.start();
    await child.waitFor('running');
    const { pid } = child.status();
    child.letGo();
    made.length = 0;
    expect(await isAlive(pid)).toBe(true);
    process.kill(pid, 'SIGKILL');
    await until(async () => !(await isAlive(pid)));
  });

  test('ends with the lifetime that it was given', async () => {
    const life = new AbortController();
    const child = node('setInterval(() => {}, 1000)', {}, { signal: life.signal });
    child.start();
    await child.waitFor('running');
    life.abort();
    await child.waitFor('stopped');
  });
});

describe('a supervisor', () => {
  const spec = (name: string): ProcessSpec => ({ name, argv: [process.execPath, '-e', 'setInterval(() => {}, 1000)'], env: {} });

  test('G-6, G-7: restarts exactly one; an unknown name, or while stopping, none', async () => {
    const supervisor = new Supervisor({ logger: silentLogger });
    const [a, b] = [supervisor.start(spec('a')), supervisor.start(spec('b'))];
    await Promise.all([a.waitFor('running'), b.waitFor('running')]);
    const before = supervisor.status().map((s) => s.pid);
    expect(supervisor.restart('a')).toBe(true);
    await until(() => a.status().state === 'running' && a.status().pid !== before[0]);
    expect(b.status().pid).toBe(before[1]);
    expect(supervisor.restart('c')).toBe(false);
    expect(() => supervisor.start(spec('a'))).toThrow(expect.objectContaining({ code: 'failed-precondition' }));
    const stopped = supervisor.stop();
    expect(supervisor.restart('b')).toBe(false);
    await stopped;
    expect(supervisor.status().map((s) => s.state)).toEqual(['stopped', 'stopped']);
  });
});

test('lines are cut at their limit, carry on over chunks, and the last needs no newline', async () => {
  const stream = new PassThrough();
  const lines: string[] = [];
  logLines(
    stream,
    (l) => lines.push(l),
    () => undefined,
  );
  stream.write('a');
  stream.write('b\r\n\n');
  stream.write('x'.repeat(limits.lineBytes * 3));
  stream.write('y\nlast');
  stream.end();
  await once(stream, 'close');
  expect(lines).toEqual(['ab', '', `${'x'.repeat(limits.lineBytes)}…`, 'last']);
});
