import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { decide, defaultRestartPolicy as policy, initialState, type Action, type MachineEvent, type MachineState } from './machine.ts';

/** Plays events one after another; `at` moves the clock, a spawn is followed by its pid. */
class Play {
  state: MachineState = initialState;
  now = 0;
  readonly actions: Action[] = [];
  #pid = 100;

  event(event: MachineEvent): this {
    const { state, actions } = decide(this.state, event, this.now, policy);
    this.state = state;
    this.actions.push(...actions);
    for (const action of actions) if (action.type === 'spawn') this.event({ type: 'spawned', pid: ++this.#pid });
    return this;
  }
  after(ms: number): this {
    this.now += ms;
    return this;
  }
  die(): this {
    return this.event({ type: 'exited', code: 1, signal: null });
  }
  get announced(): string[] {
    return this.actions.flatMap((a) => (a.type === 'announce' ? [a.what] : []));
  }
}

const started = () => new Play().event({ type: 'start' }).event({ type: 'probe-passed' });

describe('S-6', () => {
  test('S-6: the backoff is 1 s and doubles up to 60 s, while no circuit stands in the way', () => {
    const lenient = { ...policy, restartsInWindow: 100 };
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
    const play = started().die().after(1000).event({ type: 'woken' }).after(60_000).die();
    expect((play.state.wakeAt ?? 0) - play.now).toBe(2000);
    play.after(2000).event({ type: 'woken' }).after(60_001).die();
    expect((play.state.wakeAt ?? 0) - play.now).toBe(1000);
  });

  test('S-6: the sixth restart in a minute opens the circuit, announced once; after a minute it is tried again with a clean record', () => {
    const play = started();
    for (let i = 0; i < 5; i++)
      play
        .die()
        .after(2 ** i * 1000)
        .event({ type: 'woken' });
    expect(play.state.phase).toBe('starting');
    play.die();
    expect(play.state.phase).toBe('circuit-open');
    play.after(59_999).event({ type: 'woken' });
    expect(play.state.phase).toBe('circuit-open');
    play.after(1).event({ type: 'woken' });
    expect(play.state.phase).toBe('starting');
    expect(play.announced.filter((a) => a === 'circuit-open')).toHaveLength(1);
    play.die();
    expect(play.state).toMatchObject({ phase: 'restarting', wakeAt: play.now + 1000 });
  });

  test('S-6: three failed probes make it unhealthy, announced once; one that passes makes it running again', () => {
    const play = started();
    for (let i = 0; i < 5; i++) play.event({ type: 'probe-failed', error: 'no answer' });
    expect(play.state.phase).toBe('unhealthy');
    expect(play.announced).toEqual(['running', 'unhealthy']);
    play.event({ type: 'probe-passed' });
    expect(play.state).toMatchObject({ phase: 'running', failedProbes: 0 });
  });

  test('S-6: stop is SIGTERM, the grace, SIGKILL', () => {
    const play = started().event({ type: 'stop' });
    expect(play.actions.at(-1)).toEqual({ type: 'signal', signal: 'SIGTERM' });
    play.after(5000).event({ type: 'woken' });
    expect(play.actions.at(-1)).toEqual({ type: 'signal', signal: 'SIGKILL' });
    play.event({ type: 'exited', code: null, signal: 'SIGKILL' });
    expect(play.state).toMatchObject({ phase: 'stopped', pid: undefined });
  });

  test('S-7: whoever reads running also reads when it was healthy', () => {
    expect(started().state).toMatchObject({ phase: 'running', lastHealthy: 0 });
  });
});

test('G-6: a restart that is asked for replaces the process at once, without a backoff, and ten wishes are one', () => {
  const play = started();
  for (let i = 0; i < 10; i++) play.event({ type: 'restart' });
  expect(play.actions.filter((a) => a.type === 'signal')).toHaveLength(1);
  play.event({ type: 'exited', code: 0, signal: null });
  expect(play.state).toMatchObject({ phase: 'starting', restarts: 1 });
});

test('G-7: a restart of what is not wanted, or is stopping for good, does nothing', () => {
  expect(decide(initialState, { type: 'restart' }, 0, policy)).toEqual({ state: initialState, actions: [] });
  const play = started().event({ type: 'stop' });
  const before = play.state;
  expect(play.event({ type: 'restart' }).event({ type: 'exited', code: 0, signal: null }).state.phase).toBe('stopped');
  expect(before.wanted).toBe(false);
});

test('a start while it is stopping brings it up again when it is gone', () => {
  const play = started().event({ type: 'stop' }).event({ type: 'start' });
  expect(play.state.phase).toBe('stopping');
  expect(play.event({ type: 'exited', code: 0, signal: null }).state.phase).toBe('starting');
});

test('whatever happens in whatever order: one process at a time, no state without a way on', () => {
  const event = fc.oneof(
    fc.constantFrom<MachineEvent>(
      { type: 'start' },
      { type: 'stop' },
      { type: 'restart' },
      { type: 'probe-passed' },
      { type: 'probe-failed', error: 'x' },
    ),
    fc.constantFrom<MachineEvent>({ type: 'woken' }, { type: 'exited', code: 1, signal: null }),
  );
  fc.assert(
    fc.property(fc.array(fc.tuple(event, fc.integer({ min: 0, max: 70_000 }))), (steps) => {
      let state = initialState;
      let now = 0;
      let alive = false;
      for (const [next, ms] of steps) {
        now += ms;
        // Only a process that is there can end.
        if (next.type === 'exited' && !alive) continue;
        if (next.type === 'exited') alive = false;
        const decision = decide(state, next, now, policy);
        state = decision.state;
        for (const action of decision.actions) {
          if (action.type === 'spawn') {
            expect(alive).toBe(false);
            alive = true;
            state = decide(state, { type: 'spawned', pid: 7 }, now, policy).state;
          }
          if (action.type === 'signal') expect(alive).toBe(true);
        }
        expect(state.pid !== undefined).toBe(alive);
        if (state.phase === 'restarting' || state.phase === 'circuit-open') expect(state.wakeAt).toBeDefined();
        if (state.phase === 'stopped') expect(alive).toBe(false);
        expect(state.recent.length).toBeLessThanOrEqual(policy.restartsInWindow + 1);
      }
    }),
  );
});
