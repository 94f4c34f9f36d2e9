import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  canReload,
  decide,
  defaultPolicy,
  initialState,
  isAlive,
  type Action,
  type LifecycleEvent,
  type LifecyclePolicy,
} from './lifecycle.ts';

/** Applies events one after another. `after` moves the clock; a spawn is followed by its pid. */
class Run {
  state = initialState;
  now = 0;
  readonly policy: LifecyclePolicy;
  readonly actions: Action[] = [];
  #pid = 100;

  constructor(policy: Partial<LifecyclePolicy> = {}) {
    this.policy = { ...defaultPolicy, ...policy };
  }

  event(event: LifecycleEvent): this {
    const { state, actions } = decide(this.state, event, this.now, this.policy);
    this.state = state;
    this.actions.push(...actions);
    for (const action of actions) if (action.type === 'spawn') this.event({ type: 'spawned', pid: ++this.#pid });
    return this;
  }
  after(ms: number): this {
    this.now += ms;
    return this;
  }
  exit(code = 1): this {
    return this.event({ type: 'exited', code, signal: null });
  }
  get announced(): string[] {
    return this.actions.flatMap((a) => (a.type === 'announce' ? [a.what] : []));
  }
}

const started = (policy: Partial<LifecyclePolicy> = {}) => new Run(policy).event({ type: 'start' }).event({ type: 'probe-passed' });

describe('launch mode', () => {
  test('S-6: the backoff is 1 s and doubles up to 60 s, as long as the circuit stays closed', () => {
    const lenient = { ...defaultPolicy, restartsInWindow: 100 };
    let state = decide(initialState, { type: 'start' }, 0, lenient).state;
    let now = 0;
    const delays: number[] = [];
    for (let i = 0; i < 9; i++) {
      state = decide(state, { type: 'spawned', pid: 1 }, now, lenient).state;
      state = decide(state, { type: 'exited', code: 1, signal: null }, now, lenient).state;
      delays.push((state.wakeAt ?? 0) - now);
      now = state.wakeAt ?? 0;
      state = decide(state, { type: 'woken' }, now, lenient).state;
    }
    expect(delays).toEqual([1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]);
  });

  test('S-6: a run longer than the cap starts the backoff over, one as long as the cap does not', () => {
    const run = started().exit().after(1000).event({ type: 'woken' }).after(60_000).exit();
    expect((run.state.wakeAt ?? 0) - run.now).toBe(2000);
    run.after(2000).event({ type: 'woken' }).after(60_001).exit();
    expect((run.state.wakeAt ?? 0) - run.now).toBe(1000);
  });

  test('S-6: the sixth unexpected exit in a minute opens the circuit, announced once; after a minute the process starts with a clean record', () => {
    const run = started();
    for (let i = 0; i < 5; i++)
      run
        .exit()
        .after(2 ** i * 1000)
        .event({ type: 'woken' });
    expect(run.state.phase).toBe('starting');
    run.exit();
    expect(run.state.phase).toBe('circuit-open');
    run.after(59_999).event({ type: 'woken' });
    expect(run.state.phase).toBe('circuit-open');
    run.after(1).event({ type: 'woken' });
    expect(run.state.phase).toBe('starting');
    expect(run.announced.filter((a) => a === 'circuit-open')).toHaveLength(1);
    run.exit();
    expect(run.state).toMatchObject({ phase: 'restarting', wakeAt: run.now + 1000 });
  });

  test('S-6: three failed probes make a process unhealthy, announced once; a passed probe makes it running again', () => {
    const run = started();
    for (let i = 0; i < 5; i++) run.event({ type: 'probe-failed', error: 'no answer' });
    expect(run.state.phase).toBe('unhealthy');
    expect(run.announced).toEqual(['running', 'unhealthy']);
    run.event({ type: 'probe-passed' });
    expect(run.state).toMatchObject({ phase: 'running', failedProbes: 0 });
  });

  test('S-6: stop is SIGTERM, the grace, SIGKILL', () => {
    const run = started().event({ type: 'stop' });
    expect(run.actions.at(-1)).toEqual({ type: 'signal', signal: 'SIGTERM' });
    run.after(5000).event({ type: 'woken' });
    expect(run.actions.at(-1)).toEqual({ type: 'signal', signal: 'SIGKILL' });
    run.event({ type: 'exited', code: null, signal: 'SIGKILL' });
    expect(run.state).toMatchObject({ phase: 'stopped', pid: undefined });
  });

  test('S-7: an observer that reads running also reads healthy', () => {
    expect(started().state).toMatchObject({ phase: 'running', lastHealthy: 0 });
  });
});

test('G-6, G-8: a requested restart replaces the process without a backoff, and ten requests cause one restart', () => {
  const run = started();
  for (let i = 0; i < 10; i++) run.event({ type: 'restart' });
  expect(run.actions.filter((a) => a.type === 'signal')).toHaveLength(1);
  run.event({ type: 'exited', code: 0, signal: null });
  expect(run.state).toMatchObject({ phase: 'starting', restarts: 1 });
});

test('G-7: a restart of a process that is stopped, or stops for good, does nothing', () => {
  expect(decide(initialState, { type: 'restart' }, 0, defaultPolicy)).toEqual({ state: initialState, actions: [] });
  const run = started().event({ type: 'stop' });
  const before = run.state;
  expect(run.event({ type: 'restart' }).event({ type: 'exited', code: 0, signal: null }).state.phase).toBe('stopped');
  expect(before.desired).toBe(false);
});

test('a start during a stop brings the process up again once it has exited', () => {
  const run = started().event({ type: 'stop' }).event({ type: 'start' });
  expect(run.state.phase).toBe('stopping');
  expect(run.event({ type: 'exited', code: 0, signal: null }).state.phase).toBe('starting');
});

test('G-8: a reload signals a running process that supports it, and no other', () => {
  expect(
    started()
      .event({ type: 'reload' })
      .actions.some((a) => a.type === 'signal'),
  ).toBe(false);
  const run = started({ reloadSignal: 'SIGHUP' }).event({ type: 'reload' });
  expect(run.actions.at(-1)).toEqual({ type: 'signal', signal: 'SIGHUP' });
  expect(canReload(run.exit().state, run.policy)).toBe(false);
});

test('G-10: a process with the restart policy never is announced once, and is not restarted', () => {
  const run = started({ restart: 'never' }).exit(3);
  expect(run.state).toMatchObject({ phase: 'exited', pid: undefined, wakeAt: undefined, exitCode: 3 });
  expect(run.announced).toEqual(['running', 'exited']);
  const failed = new Run({ restart: 'never' }).event({ type: 'start' });
  failed.event({ type: 'spawn-failed', error: 'ENOENT' });
  expect(failed.state).toMatchObject({ phase: 'exited', lastError: 'ENOENT', exitCode: 127 });
});

test.each([
  ['the stop signal', { code: null, signal: 'SIGTERM' }, 0],
  ['a status', { code: 4, signal: null }, 4],
  ['SIGKILL after the grace', { code: null, signal: 'SIGKILL' }, 137],
] as const)('G-10: the exit code of a process that a stop ended by %s', (_, exit, code) => {
  expect(
    started()
      .event({ type: 'stop' })
      .event({ type: 'exited', ...exit }).state.exitCode,
  ).toBe(code);
});

test('G-10: a graceful stop does not hide an earlier crash', () => {
  const run = started().event({ type: 'exited', code: null, signal: 'SIGSEGV' }).after(1000).event({ type: 'woken' });
  run.event({ type: 'probe-passed' }).event({ type: 'stop' }).exit(0);
  expect(run.state).toMatchObject({ phase: 'stopped', exitCode: 139 });
});

test('S-6: an unhealthy process is restarted only where its policy asks for that, and not when it recovers in time', () => {
  const fail = (run: Run) => {
    for (let i = 0; i < 3; i++) run.event({ type: 'probe-failed', error: 'no answer' });
    return run;
  };
  expect(fail(started()).state).toMatchObject({ phase: 'unhealthy', wakeAt: undefined });
  const run = fail(started({ restartUnhealthyAfterMs: 100, startGraceMs: 0 }));
  run.event({ type: 'probe-passed' }).after(100).event({ type: 'woken' });
  expect(run.state.phase).toBe('running');
  fail(run).after(100).event({ type: 'woken' });
  expect(run.state.phase).toBe('stopping');
  expect(run.exit(0).state).toMatchObject({ phase: 'starting', restarts: 1 });
});

test('S-6: a process that starts slowly is not restarted for that within its start grace', () => {
  const run = new Run({ restartUnhealthyAfterMs: 0, startGraceMs: 1000 }).event({ type: 'start' });
  for (let i = 0; i < 3; i++) run.event({ type: 'probe-failed', error: 'no answer' });
  expect(run.state.phase).toBe('unhealthy');
  run.after(999).event({ type: 'woken' });
  expect(run.state.phase).toBe('unhealthy');
  run.event({ type: 'probe-passed' }).after(1).event({ type: 'woken' });
  expect(run.state.phase).toBe('running');
});

test('S-7: a degraded process is not unhealthy: it is announced, and restarted never', () => {
  const run = started({ restartUnhealthyAfterMs: 0 }).event({ type: 'probe-passed', degraded: 'disk almost full' });
  expect(run.state).toMatchObject({ phase: 'degraded', lastError: 'disk almost full', wakeAt: undefined });
  run.event({ type: 'probe-passed', degraded: 'disk almost full' }).event({ type: 'probe-passed' });
  expect(run.announced).toEqual(['running', 'degraded', 'running']);
});

test('a stop while the process is being spawned signals it as soon as it exists', () => {
  const late = new Run({ stopSignal: 'SIGINT' });
  late.state = decide(initialState, { type: 'start' }, 0, late.policy).state;
  expect(late.event({ type: 'stop', graceMs: 10 }).actions).toEqual([]);
  late.after(10).event({ type: 'woken' });
  expect(late.actions).toEqual([]);
  late.event({ type: 'spawned', pid: 7 });
  expect(late.actions).toEqual([{ type: 'signal', signal: 'SIGINT' }]);
  expect(late.exit(0).state.phase).toBe('stopped');
});

describe('attach mode', () => {
  const attached = () => new Run({ mode: 'attach', restartUnhealthyAfterMs: 0 }).event({ type: 'start' });
  const fail = { type: 'probe-failed', error: 'refused' } as const;

  test('S-3: starting until the first connection, then running or unhealthy, stopped after a stop', () => {
    const run = attached();
    for (let i = 0; i < 10; i++) run.event(fail);
    expect(run.state.phase).toBe('starting');
    expect(run.event({ type: 'probe-passed' }).state.phase).toBe('running');
    for (let i = 0; i < 3; i++) run.event(fail);
    expect(run.state.phase).toBe('unhealthy');
    expect(run.event({ type: 'probe-passed' }).state.phase).toBe('running');
    expect(run.event({ type: 'stop' }).state.phase).toBe('stopped');
    expect(run.announced).toEqual(['running', 'unhealthy', 'running', 'stopped']);
  });

  test('S-2, S-3: nothing executes, signals or restarts a process, backs off or opens a circuit', () => {
    const event = fc.constantFrom<LifecycleEvent>(
      { type: 'start' },
      { type: 'stop' },
      { type: 'restart' },
      { type: 'reload' },
      { type: 'woken' },
      { type: 'probe-passed' },
      fail,
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(event, fc.integer({ min: 0, max: 70_000 }))), (steps) => {
        const run = attached();
        for (const [next, ms] of steps) {
          run.after(ms).event(next);
          expect(run.state).toMatchObject({ pid: undefined, restarts: 0, exitCode: 0 });
          expect(['stopped', 'starting', 'running', 'unhealthy']).toContain(run.state.phase);
        }
        expect(run.actions.filter((a) => a.type === 'spawn' || a.type === 'signal')).toEqual([]);
      }),
    );
  });
});

test('in any order of events: at most one process exists, and every phase has a way out', () => {
  const event = fc.oneof(
    fc.constantFrom<LifecycleEvent>(
      { type: 'start' },
      { type: 'stop' },
      { type: 'restart' },
      { type: 'reload' },
      { type: 'probe-passed' },
      { type: 'probe-passed', degraded: 'x' },
      { type: 'probe-failed', error: 'x' },
    ),
    fc.constantFrom<LifecycleEvent>({ type: 'woken' }, { type: 'exited', code: 1, signal: null }, { type: 'spawned', pid: 7 }),
  );
  const policies = fc.record({
    restart: fc.constantFrom('always' as const, 'never' as const),
    restartUnhealthyAfterMs: fc.constantFrom(undefined, 100),
  });
  fc.assert(
    fc.property(policies, fc.array(fc.tuple(event, fc.integer({ min: 0, max: 70_000 }))), (changes, steps) => {
      const policy = { ...defaultPolicy, reloadSignal: 'SIGHUP' as const, ...changes };
      let state = initialState;
      let now = 0;
      let child: 'none' | 'spawning' | 'alive' = 'none';
      let largest = 0;
      for (const [next, ms] of steps) {
        now += ms;
        // Only an existing process can exit, and only one that is being spawned can begin.
        if (next.type === 'exited' && child !== 'alive') continue;
        if (next.type === 'spawned' && child !== 'spawning') continue;
        if (next.type === 'exited') child = 'none';
        if (next.type === 'spawned') child = 'alive';
        const decision = decide(state, next, now, policy);
        state = decision.state;
        for (const action of decision.actions) {
          if (action.type === 'spawn') {
            expect(child).toBe('none');
            child = 'spawning';
          }
          if (action.type === 'signal') expect(child).toBe('alive');
        }
        expect(state.pid !== undefined).toBe(child === 'alive');
        if (state.phase === 'restarting' || state.phase === 'circuit-open') expect(state.wakeAt).toBeDefined();
        if (state.phase === 'stopped' || state.phase === 'exited') expect(child).toBe('none');
        if (isAlive(state)) expect(child).not.toBe('none');
        expect(state.recentExits.length).toBeLessThanOrEqual(policy.restartsInWindow + 1);
        expect(state.exitCode).toBeGreaterThanOrEqual(largest);
        largest = state.exitCode;
      }
    }),
  );
});
