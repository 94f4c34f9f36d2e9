import { limits } from './limits.ts';

/** Times and counts that a process may set for itself; the defaults are in limits.ts. */
export interface RestartPolicy {
  readonly backoffBaseMs: number;
  readonly backoffCapMs: number;
  readonly restartsInWindow: number;
  readonly windowMs: number;
  readonly coolDownMs: number;
  readonly probeFailures: number;
  readonly stopGraceMs: number;
}

export const defaultRestartPolicy: RestartPolicy = limits;

export type Phase = 'stopped' | 'starting' | 'running' | 'unhealthy' | 'stopping' | 'restarting' | 'circuit-open';

/** What is known of one supervised process. A value: `decide` makes the next one. */
export interface MachineState {
  readonly phase: Phase;
  /** Should it be there? Stopping with true is a restart that was asked for. */
  readonly wanted: boolean;
  readonly pid: number | undefined;
  readonly startedAt: number | undefined;
  /** Restarts since it was first started. */
  readonly restarts: number;
  /** Failures in a row: the exponent of the next backoff. */
  readonly attempt: number;
  /** When each restart of the sliding window was decided. */
  readonly recent: readonly number[];
  readonly failedProbes: number;
  readonly lastHealthy: number | undefined;
  readonly lastError: string | undefined;
  readonly lastExit: Exit | undefined;
  /** When the machine next has to be woken: the end of a grace, a backoff or a cool-down. */
  readonly wakeAt: number | undefined;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: string | null;
  readonly at: number;
}

export const initialState: MachineState = {
  phase: 'stopped',
  wanted: false,
  pid: undefined,
  startedAt: undefined,
  restarts: 0,
  attempt: 0,
  recent: [],
  failedProbes: 0,
  lastHealthy: undefined,
  lastError: undefined,
  lastExit: undefined,
  wakeAt: undefined,
};

export type MachineEvent =
  | { readonly type: 'start' }
  | { readonly type: 'stop' }
  | { readonly type: 'restart' }
  | { readonly type: 'spawned'; readonly pid: number }
  | { readonly type: 'spawn-failed'; readonly error: string }
  | { readonly type: 'exited'; readonly code: number | null; readonly signal: string | null }
  | { readonly type: 'probe-passed' }
  | { readonly type: 'probe-failed'; readonly error: string }
  /** `wakeAt` has come. */
  | { readonly type: 'woken' };

export type Action =
  | { readonly type: 'spawn' }
  | { readonly type: 'signal'; readonly signal: 'SIGTERM' | 'SIGKILL' }
  | { readonly type: 'announce'; readonly what: Announcement };

export type Announcement = 'running' | 'unhealthy' | 'died' | 'circuit-open' | 'circuit-closed' | 'killed' | 'stopped';

export interface Decision {
  readonly state: MachineState;
  readonly actions: readonly Action[];
}

const spawn: Action = { type: 'spawn' };
const announce = (what: Announcement): Action => ({ type: 'announce', what });

/**
 * What follows from an event (S-6): a function of values, without time or effects of its own. Events that cannot be meant
 * for the present phase (a probe's answer that comes late) change nothing.
 * @param now milliseconds; never smaller than in an earlier call
 */
export function decide(state: MachineState, event: MachineEvent, now: number, policy: RestartPolicy): Decision {
  const same: Decision = { state, actions: [] };
  switch (event.type) {
    case 'start':
      return onStart({ ...state, wanted: true });
    case 'stop':
      return onStop({ ...state, wanted: false }, now, policy);
    case 'restart':
      return state.wanted ? onRestart(state, now, policy) : same;
    case 'spawned':
      if (state.phase !== 'starting') return same;
      return { state: { ...state, pid: event.pid, startedAt: now, failedProbes: 0 }, actions: [] };
    case 'spawn-failed':
      return state.phase === 'starting' ? onDeath({ ...state, lastError: event.error }, now, policy) : onGone(state);
    case 'exited': {
      const lastExit: Exit = { code: event.code, signal: event.signal, at: now };
      return state.phase === 'stopping' ? onGone({ ...state, lastExit }) : onDeath({ ...state, lastExit }, now, policy);
    }
    case 'probe-passed':
      if (!isAlive(state)) return same;
      return {
        state: { ...state, phase: 'running', failedProbes: 0, lastHealthy: now },
        actions: state.phase === 'running' ? [] : [announce('running')],
      };
    case 'probe-failed':
      return isAlive(state) ? onProbeFailed({ ...state, lastError: event.error }, policy) : same;
    case 'woken':
      if (state.wakeAt !== undefined && now >= state.wakeAt) return onWoken({ ...state, wakeAt: undefined });
      break;
  }
  return same;
}

/** Is there a process that a probe could be about? */
export function isAlive(state: MachineState): boolean {
  return state.pid !== undefined && (state.phase === 'starting' || state.phase === 'running' || state.phase === 'unhealthy');
}

function onStart(state: MachineState): Decision {
  // Whatever else is going on, it ends in a start by itself: a stopping process is replaced when it is gone (G-6).
  if (state.phase !== 'stopped') return { state, actions: [] };
  return { state: { ...state, phase: 'starting', attempt: 0, recent: [] }, actions: [spawn] };
}

function onStop(state: MachineState, now: number, policy: RestartPolicy): Decision {
  switch (state.phase) {
    case 'stopped':
    case 'stopping':
      return { state, actions: [] };
    case 'restarting':
    case 'circuit-open':
      return { state: { ...state, phase: 'stopped', wakeAt: undefined }, actions: [announce('stopped')] };
    case 'starting':
    case 'running':
    case 'unhealthy':
      break;
  }
  return end(state, now, policy);
}

function onRestart(state: MachineState, now: number, policy: RestartPolicy): Decision {
  switch (state.phase) {
    case 'stopped':
    case 'stopping':
      return { state, actions: [] };
    case 'restarting':
    case 'circuit-open':
      // A person who asks does not wait for a backoff.
      return {
        state: { ...state, phase: 'starting', attempt: 0, recent: [], wakeAt: undefined, restarts: state.restarts + 1 },
        actions: [spawn],
      };
    case 'starting':
    case 'running':
    case 'unhealthy':
      break;
  }
  return end(state, now, policy);
}

function end(state: MachineState, now: number, policy: RestartPolicy): Decision {
  return {
    state: { ...state, phase: 'stopping', wakeAt: now + policy.stopGraceMs },
    actions: [{ type: 'signal', signal: 'SIGTERM' }],
  };
}

/** It ended as it was asked to: stay down, or come up again at once. */
function onGone(state: MachineState): Decision {
  const gone = { ...state, pid: undefined, startedAt: undefined, wakeAt: undefined };
  if (!state.wanted) return { state: { ...gone, phase: 'stopped' }, actions: [announce('stopped')] };
  return { state: { ...gone, phase: 'starting', attempt: 0, restarts: state.restarts + 1 }, actions: [spawn] };
}

/** It ended by itself, or never came up. */
function onDeath(state: MachineState, now: number, policy: RestartPolicy): Decision {
  const ranMs = state.startedAt === undefined ? 0 : now - state.startedAt;
  const attempt = ranMs > policy.backoffCapMs ? 0 : state.attempt;
  const recent = [...state.recent.filter((at) => at > now - policy.windowMs), now];
  const dead = { ...state, pid: undefined, startedAt: undefined, recent };
  if (recent.length > policy.restartsInWindow) {
    return {
      state: { ...dead, phase: 'circuit-open', wakeAt: now + policy.coolDownMs },
      actions: [announce('died'), announce('circuit-open')],
    };
  }
  const delay = Math.min(policy.backoffCapMs, policy.backoffBaseMs * 2 ** Math.min(attempt, 30));
  return { state: { ...dead, phase: 'restarting', attempt: attempt + 1, wakeAt: now + delay }, actions: [announce('died')] };
}

function onProbeFailed(state: MachineState, policy: RestartPolicy): Decision {
  const failedProbes = state.failedProbes + 1;
  const unhealthy = failedProbes >= policy.probeFailures && state.phase !== 'unhealthy';
  return {
    state: { ...state, failedProbes, phase: unhealthy ? 'unhealthy' : state.phase },
    actions: unhealthy ? [announce('unhealthy')] : [],
  };
}

function onWoken(state: MachineState): Decision {
  switch (state.phase) {
    case 'stopping':
      return { state, actions: [announce('killed'), { type: 'signal', signal: 'SIGKILL' }] };
    case 'restarting':
      return { state: { ...state, phase: 'starting', restarts: state.restarts + 1 }, actions: [spawn] };
    case 'circuit-open':
      return {
        state: { ...state, phase: 'starting', attempt: 0, recent: [], restarts: state.restarts + 1 },
        actions: [announce('circuit-closed'), spawn],
      };
    case 'stopped':
    case 'starting':
    case 'running':
    case 'unhealthy':
      break;
  }
  return { state, actions: [] };
}
