import { FakeClock, systemClock, type Clock } from '@drover/foundation';
import { describe, expect, test, vi } from 'vitest';
import { lastEndVariable, probing, SupervisedProcess } from './index.ts';
import { limits } from './limits.ts';
import { isRunning, supervise } from './testing/programs.ts';

const idle = 'setInterval(() => {}, 1000)';

describe('a launched process', () => {
  test('is running once its probe passes, and not before', async () => {
    let ready = false;
    const probe = async () => {
      if (!ready) throw new Error('not yet');
    };
    const child = supervise(idle, { health: probing(probe, 5) });
    child.start();
    await expect.poll(() => child.status().lastError).toBe('not yet');
    expect(child.status().state).not.toBe('running');
    ready = true;
    await child.waitFor('running');
    expect(child.status()).toMatchObject({ state: 'running', restarts: 0, lastHealthy: expect.any(Number) });
  });

  test('S-6: is restarted with backoff while it keeps crashing, until its circuit opens, and again after the cool-down', async () => {
    const clock = new FakeClock();
    const announced: string[] = [];
    const child = supervise('process.exit(3)', {}, { clock, onChange: (_, what) => what && announced.push(what) });
    child.start();
    for (let i = 0; i < 5; i++) {
      await child.waitFor('restarting');
      expect(child.status().lastExit).toMatchObject({ code: 3 });
      await clock.advance(2 ** i * 1000);
    }
    await child.waitFor('circuit-open');
    expect(announced.filter((a) => a === 'exited')).toHaveLength(6);
    expect(announced.filter((a) => a === 'circuit-open')).toHaveLength(1);
    await clock.advance(limits.coolDownMs);
    await child.waitFor('restarting');
    expect(child.status().restarts).toBe(6);
  });

  test('S-6: a timer that fires before its time delays a restart and does not lose it', async () => {
    let early = 0;
    // Timers fire 5 ms early, as those of Node.js may by a fraction of a millisecond.
    const clock: Clock = {
      now: () => systemClock.now(),
      sleep: async (ms, signal) => {
        if (ms > 5) early++;
        await systemClock.sleep(ms > 5 ? ms - 5 : ms, signal);
      },
    };
    const child = supervise('process.exit(1)', { policy: { backoffBaseMs: 100 } }, { clock });
    child.start();
    await expect.poll(() => child.status().restarts).toBeGreaterThan(0);
    expect(early).toBeGreaterThan(0);
  });

  test('S-6: is killed when it ignores its stop signal for longer than its grace', async () => {
    const clock = new FakeClock();
    const lines: string[] = [];
    const child = supervise(
      "process.on('SIGINT', () => console.log('no')); console.log('up'); setInterval(() => {}, 1000)",
      { onLine: (l) => lines.push(l), policy: { stopSignal: 'SIGINT' } },
      { clock },
    );
    child.start();
    await expect.poll(() => lines).toContain('up');
    const stopped = child.stop();
    await expect.poll(() => lines).toContain('no');
    expect(child.status().state).toBe('stopping');
    await clock.advance(limits.stopGraceMs);
    await stopped;
    expect(child.status()).toMatchObject({ state: 'stopped', pid: 0, lastExit: { signal: 'SIGKILL' }, exitCode: 137 });
  });

  test.each(['stop', 'crash'] as const)('R-9: takes everything that it started with it when it ends by a %s', async (end) => {
    const lines: string[] = [];
    const grandchild =
      "require('node:child_process').spawn(process.execPath, ['-e', 'process.on(`SIGTERM`, () => {}); setInterval(() => {}, 1000)'], { stdio: 'inherit' })";
    const child = supervise(`console.log(${grandchild}.pid); setInterval(() => {}, 1000)`, { onLine: (l) => lines.push(l) });
    child.start();
    await expect.poll(() => lines.length).toBeGreaterThan(0);
    const pid = Number(lines[0]);
    expect(await isRunning(pid)).toBe(true);
    if (end === 'stop') await child.stop();
    else process.kill(child.status().pid, 'SIGKILL');
    await expect.poll(async () => await isRunning(pid)).toBe(false);
  });

  test('G-11: has the environment of its spec and no other', async () => {
    const lines: string[] = [];
    supervise('console.log(JSON.stringify(process.env))', {
      env: { ONLY: 'this' },
      outlivesSupervisor: true,
      onLine: (l) => lines.push(l),
    }).start();
    await expect.poll(() => lines.length).toBeGreaterThan(0);
    expect(JSON.parse(lines[0] ?? '')).toEqual({ ONLY: 'this' });
  });

  test('a replacement knows how the previous process ended', async () => {
    const lines: string[] = [];
    const child = supervise(`console.log(process.env.${lastEndVariable}); ${idle}`, {
      onLine: (line) => lines.push(line),
      policy: { backoffBaseMs: 1 },
    });
    child.start();
    await expect.poll(() => lines).toEqual(['undefined']);
    process.kill(child.status().pid, 'SIGABRT');
    await expect.poll(() => lines).toEqual(['undefined', 'SIGABRT']);
  });

  test('G-11: a flood of output neither holds the process up nor floods the log', async () => {
    const lines: string[] = [];
    const child = supervise("for (let i = 0; i < 200000; i++) console.log('line', i); process.exitCode = 7", {
      onLine: (l) => lines.push(l),
    });
    child.start();
    await child.waitFor('restarting');
    expect(child.status().lastExit?.code).toBe(7);
    // The lines of some seconds, for a slow machine: far below the number of lines that were written.
    expect(lines.length).toBeLessThanOrEqual(limits.linesPerSecond * 20);
  });

  test('G-10: a program that does not exist is retried like one that crashes, and its error is kept', async () => {
    const child = supervise('', { argv: ['/nonexistent/program'] }, { clock: new FakeClock() });
    child.start();
    await child.waitFor('restarting');
    expect(child.status()).toMatchObject({ lastError: expect.stringContaining('ENOENT'), exitCode: 127 });
  });

  test('G-10: with the restart policy never, its exit is final and announced', async () => {
    const announced: string[] = [];
    const child = supervise('process.exit(4)', { policy: { restart: 'never' } }, { onChange: (_, what) => what && announced.push(what) });
    child.start();
    await child.waitFor('exited');
    expect(child.status()).toMatchObject({ state: 'exited', restarts: 0, exitCode: 4 });
    expect(announced).toEqual(['running', 'exited']);
    child.start();
    await expect.poll(() => announced).toEqual(['running', 'exited', 'running', 'exited']);
  });

  test('G-8: a reload reaches the process as its signal, and its pid stays', async () => {
    const lines: string[] = [];
    const child = supervise(`process.on('SIGHUP', () => console.log('reloaded')); console.log('up'); ${idle}`, {
      onLine: (l) => lines.push(l),
      policy: { reloadSignal: 'SIGHUP' },
    });
    expect(child.reload()).toBe(false);
    child.start();
    await expect.poll(() => lines).toContain('up');
    const { pid } = child.status();
    expect(child.reload()).toBe(true);
    await expect.poll(() => lines).toContain('reloaded');
    expect(child.status().pid).toBe(pid);
  });

  test('G-29: a released process runs on', async () => {
    const child = supervise(idle, { outlivesSupervisor: true });
    child.start();
    await child.waitFor('running');
    const { pid } = child.status();
    child.release();
    expect(await isRunning(pid)).toBe(true);
    process.kill(pid, 'SIGKILL');
    await expect.poll(async () => await isRunning(pid)).toBe(false);
  });

  test('ends with the lifetime that it was started under', async () => {
    const life = new AbortController();
    const child = supervise(idle, {}, { signal: life.signal });
    child.start();
    await child.waitFor('running');
    life.abort();
    await child.waitFor('stopped');
  });
});

describe('an attached process', () => {
  /** A peer whose connection works, fails or is lost as the test asks. */
  function peer() {
    const state = { up: false, dials: 0, closed: 0, lose: () => undefined as void };
    const health = {
      everyMs: 5,
      dial: async () => {
        state.dials++;
        if (!state.up) throw new Error('refused');
        const { promise: lost, resolve } = Promise.withResolvers<void>();
        state.lose = resolve;
        return {
          lost,
          ping: async () => {
            if (!state.up) throw new Error('no answer');
            return undefined;
          },
          close: () => void state.closed++,
        };
      },
    };
    return { state, health };
  }

  test('S-2 to S-4: is running while its connection works; a failed ping closes the stale client and the next one dials again', async () => {
    const { state, health } = peer();
    const onHealthy = vi.fn();
    const attached = new SupervisedProcess({ name: 'peer', health: { ...health, onHealthy } });
    attached.start();
    await expect.poll(() => state.dials).toBeGreaterThan(3);
    expect(attached.status()).toMatchObject({ state: 'starting', mode: 'attach' });
    state.up = true;
    await attached.waitFor('running');
    expect(onHealthy).toHaveBeenCalledTimes(1);
    state.up = false;
    await attached.waitFor('unhealthy');
    expect(state.closed).toBeGreaterThan(0);
    state.up = true;
    await attached.waitFor('running');
    expect(onHealthy).toHaveBeenCalledTimes(2);
    expect(attached.status()).toMatchObject({ pid: 0, restarts: 0 });
    await attached.stop();
  });

  test('a lost connection is noticed immediately, not at the next probe', async () => {
    const { state, health } = peer();
    state.up = true;
    const attached = new SupervisedProcess({ name: 'peer', health: { ...health, everyMs: 3_600_000 } });
    attached.start();
    await attached.waitFor('running');
    state.up = false;
    state.lose();
    await attached.waitFor('unhealthy');
    await attached.stop();
  });

  test('S-5: the mode is known while it is started', async () => {
    const { health } = peer();
    const attached = new SupervisedProcess({ name: 'peer', health });
    expect(attached.mode()).toBeUndefined();
    attached.start();
    expect(attached.mode()).toBe('attach');
    await attached.stop();
    expect(attached.mode()).toBeUndefined();
  });
});
