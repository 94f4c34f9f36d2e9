import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { newHostId, newSandboxId } from '@drover/foundation';
import { closeFailuresMax, interruptedPlansMax } from '../../limits.ts';
import type { SandboxRow } from '../../model/index.ts';
import { emptyView } from '../../worldview/index.ts';
import { afterFailure, afterSession, mustBeReachable } from './policy.ts';
import { advance, initialState, mayHaveBegun, type StartEvent, type StartState } from './start-state.ts';

const hostId = newHostId();
const running = {
  id: newSandboxId(),
  desired: 'running',
  hostId,
  observed: 'running',
  startCount: 3,
  address: '10.0.0.2',
} as SandboxRow;

describe('the action after a failed attempt', () => {
  const attempt = { established: false, slow: false };
  it.each([
    ['is another attempt while the dial has time', {}, attempt, 60_000, 500, 'retry'],
    ['is the end of the dial when the next attempt would be too late', {}, attempt, 500, 500, 'give-up'],
    ['is the end of a slow redial', {}, { established: false, slow: true }, 60_000, 500, 'give-up'],
    ['is a redial after an established session, even past the deadline', {}, { established: true, slow: false }, 0, 0, 'broken'],
    [
      'I-25: is the end of the dial when descriptors leak',
      { closeFailures: closeFailuresMax },
      { established: true, slow: false },
      60_000,
      0,
      'leaking',
    ],
  ] as const)('%s', (_, state, made, leftMs, delayMs, expected) => {
    expect(afterFailure({ ...initialState, ...state }, made, leftMs, delayMs)).toBe(expected);
  });
});

describe('the action after the end of a session', () => {
  const interrupted = { ...initialState, interruptedPlans: interruptedPlansMax };
  it.each([
    ['I-24: nothing when the sandbox is to stop', initialState, { desired: 'stopped' }, 'broken', 'done'],
    ['I-24: nothing when it is paused', initialState, { observed: 'paused' }, 'broken', 'done'],
    ['an immediate redial when it was started again', initialState, { startCount: 4 }, 'sandbox-ended', 'redial-now'],
    ['a redial when only the session broke', initialState, { startCount: 4 }, 'broken', 'redial'],
    ['I-2: a redial when init alone reports the end', initialState, {}, 'sandbox-ended', 'redial'],
    ['I-30: the failure of a start whose plan broke too often', interrupted, {}, 'broken', 'fail-start'],
  ] as const)('is %s', (_, state, change, end, expected) => {
    expect(afterSession(state, { ...running, ...change }, 3, end)).toBe(expected);
  });

  it('is nothing when the sandbox is deleted', () => {
    expect(afterSession(initialState, undefined, 3, 'broken')).toBe('done');
  });
});

it.each([
  [{ observed: 'stopped' }, 'not-running'],
  [{ deletedAt: 1 }, 'not-running'],
  [{ lostSince: 1 }, 'not-running'],
  [{ address: '' }, 'no-address'],
] as const)('I-23: a sandbox with %j is not reachable', (change, reason) => {
  expect(() => mustBeReachable({ ...running, ...change }, () => true)).toThrow(expect.objectContaining({ reason }));
  expect(() => mustBeReachable(running, () => false)).toThrow(expect.objectContaining({ reason: 'host-not-connected' }));
  expect(mustBeReachable(running, () => true)).toBe(running);
});

describe('the state of a start', () => {
  const start = fc.integer({ min: 1, max: 4 });
  const view = fc.record({
    startCount: start,
    state: fc.constantFrom('running', 'completed', 'failed'),
    place: fc.constantFrom(undefined, { step: 'git', index: 1, count: 2 }, { step: 'agent-ready', index: 2, count: 2 }),
  });
  const event: fc.Arbitrary<StartEvent> = fc.oneof(
    fc.record({ kind: fc.constant('attempted' as const), start, hostId: fc.constant(hostId) }),
    fc.record({ kind: fc.constantFrom('ready-requested' as const, 'completed' as const, 'interrupted' as const), start }),
    fc.record({ kind: fc.constant('settled' as const) }),
    fc.record({ kind: fc.constant('closed' as const), ok: fc.boolean() }),
    fc.record({
      kind: fc.constant('recalled' as const),
      start,
      init: view.map((change) => ({ ...emptyView(newSandboxId()).init, ...change })),
    }),
  );
  const after = (events: readonly StartEvent[]): StartState => events.reduce(advance, initialState);

  it('I-30: a requested command may have begun, regardless of later events of that start on that host', () => {
    fc.assert(
      fc.property(start, fc.array(event), (asked, events) => {
        const others = events.filter((one) => !('start' in one) || one.start === asked);
        const first: StartEvent = { kind: 'attempted', start: asked, hostId };
        expect(mayHaveBegun(after([first, { kind: 'ready-requested', start: asked }, ...others]), asked)).toBe(true);
      }),
    );
  });

  it('an interruption counts only before the command may have begun', () => {
    fc.assert(
      fc.property(start, fc.array(event), (of, events) => {
        const before = after(events);
        const { interruptedPlans } = advance(before, { kind: 'interrupted', start: of });
        expect(interruptedPlans).toBe(before.interruptedPlans + (mayHaveBegun(before, of) ? 0 : 1));
      }),
    );
  });

  it('another host resets the state, except for the count of leaked descriptors', () => {
    fc.assert(
      fc.property(fc.array(event), (events) => {
        const before = after(events);
        const other = newHostId();
        const { closeFailures } = before;
        expect(advance(before, { kind: 'attempted', start: 1, hostId: other })).toEqual({
          ...initialState,
          closeFailures,
          start: 1,
          hostId: other,
        });
      }),
    );
  });
});
