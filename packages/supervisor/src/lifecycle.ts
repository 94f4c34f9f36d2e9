import { constants } from 'node:os';
import { limits } from './limits.ts';

/** What one process asks of its supervisor. The defaults are in limits.ts; the times are milliseconds. */
export interface LifecyclePolicy {
  /** `launch`: the supervisor owns the process. `attach`: another supervisor does, and only its health is followed (S-2). */
  readonly mode: 'launch' | 'attach';
  /** `never`: an exit is announced and final (G-10). */
  readonly restart: 'always' | 'never';
  /** Asks the process to end. */
  readonly stopSignal: NodeJS.Signals | number;
  /** From the stop signal to SIGKILL. */
  readonly stopGraceMs: number;
  /** Asks the process to read its configuration again (G-8). Undefined: it cannot. */
  readonly reloadSignal: NodeJS.Signals | undefined;
  readonly backoffBaseMs: number;
  readonly backoffCapMs: number;
  readonly restartsInWindow: number;
  readonly windowMs: number;
  readonly coolDownMs: number;
  /** Failed probes in a row that make a process unhealthy. */
  readonly probeFailures: number;
  /** How long a process stays unhealthy before it is restarted. Undefined: it is not restarted for that (S-6). */
  readonly restartUnhealthyAfterMs: number | undefined;
  /** From its start a process has this long to become healthy, before `restartUnhealthyAfterMs` counts. */
  readonly startGraceMs: number;
}

export const defaultPolicy: LifecyclePolicy = {
  ...limits,
  mode: 'launch',
  restart: 'always',
  stopSignal: 'SIGTERM',
  reloadSignal: undefined,
  restartUnhealthyAfterMs: undefined,
};

export type Phase =
  | 'stopped'
  | 'starting'
  | 'running'
  /** Running, and reports a problem of its own (S-7). */
  | 'degraded'
  | 'unhealthy'
  | 'stopping'
  | 'restarting'
  | 'circuit-open'
  /** Ended for good: its restart policy is `never`. */
  | 'exited';

/** How a process ended: its status, or the name of the signal that ended it. */
export interface Exit {
  readonly code: number | null;
  readonly signal: string | null;
  /** Milliseconds since the epoch. */
  readonly at: number;
}

/** The state of one supervised process. A value: `decide` returns the next one. */
export interface LifecycleState {
  readonly phase: Phase;
  /** The process should be up. In the phase `stopping` it makes the difference between a restart and a stop. */
  readonly desired: boolean;
  /** Undefined in attach mode (S-3), and while no process exists. */
  readonly pid: number | undefined;
  readonly startedAt: number | undefined;
  /** Restarts since the first start; always 0 in attach mode (S-3). */
  readonly restarts: number;
  /** Failures in a row: the exponent of the next backoff. */
  readonly attempt: number;
  /** When each unexpected exit in the sliding window happened. */
  readonly recentExits: readonly number[];
  readonly failedProbes: number;
  readonly lastHealthy: number | undefined;
  readonly lastError: string | undefined;
  readonly lastExit: Exit | undefined;
  /** The largest exit code so far. An exit that the stop signal caused counts as 0 (G-10). */
  readonly exitCode: number;
  /** When the machine has to be woken: the end of a grace, a backoff, a cool-down or of the patience with an unhealthy process. */
  readonly wakeAt: number | undefined;
}

export const initialState: LifecycleState = {
  phase: 'stopped',
  desired: false,
  pid: undefined,
  startedAt: undefined,
  restarts: 0,
  attempt: 0,
  recentExits: [],
  failedProbes: 0,
  lastHealthy: undefined,
  lastError: undefined,
  lastExit: undefined,
  exitCode: 0,
  wakeAt: undefined,
};

export type LifecycleEvent =
  | { readonly type: 'start' }
  /** @param graceMs replaces the policy's */
  | { readonly type: 'stop'; readonly graceMs?: number }
  | { readonly type: 'restart' }
  | { readonly type: 'reload' }
  | { readonly type: 'spawned'; readonly pid: number }
  | { readonly type: 'spawn-failed'; readonly error: string }
  | { readonly type: 'exited'; readonly code: number | null; readonly signal: string | null }
  /** @param degraded the problem that the process reports of itself */
  | { readonly type: 'probe-passed'; readonly degraded?: string | undefined }
  | { readonly type: 'probe-failed'; readonly error: string }
  /** The time `wakeAt` has come. */
  | { readonly type: 'woken' };

export type Action =
  | { readonly type: 'spawn' }
  /** Starts the health loop. It ends when the process is no longer alive. */
  | { readonly type: 'probe' }
  | { readonly type: 'signal'; readonly signal: NodeJS.Signals | number }
  | { readonly type: 'announce'; readonly what: Announcement };

export type Announcement = 'running' | 'degraded' | 'unhealthy' | 'exited' | 'circuit-open' | 'circuit-closed' | 'killed' | 'stopped';

export interface Decision {
  readonly state: LifecycleState;
  readonly actions: readonly Action[];
}

const announce = (what: Announcement): Action => ({ type: 'announce', what });
const spawn: Action = { type: 'spawn' };

/**
 * What follows from an event (S-6): a function of values, without effects. An event that does not fit the phase, such as a late
 * probe result, changes nothing.
 * @param now milliseconds; never smaller than in an earlier call
 */
export function decide(state: LifecycleState, event: LifecycleEvent, now: number, policy: LifecyclePolicy): Decision {
  const same: Decision = { state, actions: [] };
  switch (event.type) {
    case 'start':
      return onStart({ ...state, desired: true }, policy);
    case 'stop':
      return onStop({ ...state, desired: false }, now, { ...policy, stopGraceMs: event.graceMs ?? policy.stopGraceMs });
    case 'restart':
      // S-2: attach mode restarts nothing.
      return state.desired && policy.mode === 'launch' ? onRestart(state, now, policy) : same;
    case 'reload':
      return canReload(state, policy) ? { state, actions: [{ type: 'signal', signal: policy.reloadSignal }] } : same;
    case 'spawned':
      return onSpawned({ ...state, pid: event.pid, startedAt: now, failedProbes: 0 }, now, policy);
    case 'spawn-failed':
      return onSpawnFailed({ ...state, lastError: event.error, exitCode: Math.max(state.exitCode, spawnFailedCode) }, now, policy);
    case 'exited':
      return onExited(state, { code: event.code, signal: event.signal, at: now }, now, policy);
    case 'probe-passed':
      return isAlive(state) ? onProbePassed({ ...state, failedProbes: 0, lastHealthy: now }, event.degraded) : same;
    case 'probe-failed':
      return isAlive(state) ? onProbeFailed({ ...state, lastError: event.error }, now, policy) : same;
    case 'woken':
      if (state.wakeAt !== undefined && now >= state.wakeAt) return onWoken({ ...state, wakeAt: undefined }, now, policy);
  }
  return same;
}

/** The exit code of a program that could not be started, as a shell reports it (POSIX, 2.8.2). */
const spawnFailedCode = 127;

/** Reports whether the process is up, as far as its supervisor knows. */
export function isAlive({ phase }: Pick<LifecycleState, 'phase'>): boolean {
  return phase === 'starting' || phase === 'running' || phase === 'degraded' || phase === 'unhealthy';
}

/** Reports whether a reload reaches the process: it runs, and supports it. */
export function canReload(state: LifecycleState, policy: LifecyclePolicy): policy is LifecyclePolicy & { reloadSignal: NodeJS.Signals } {
  return isAlive(state) && state.pid !== undefined && policy.reloadSignal !== undefined;
}

/** Reports whether nothing more happens with the process until it is started again. */
export function isFinal({ phase }: Pick<LifecycleState, 'phase'>): boolean {
  return phase === 'stopped' || phase === 'exited';
}

function onStart(state: LifecycleState, policy: LifecyclePolicy): Decision {
  // Every other phase leads to a start without further help: a stopping process is replaced when it has exited (G-6).
  if (!isFinal(state)) return { state, actions: [] };
  return {
    state: { ...state, phase: 'starting', attempt: 0, recentExits: [], failedProbes: 0 },
    actions: [policy.mode === 'launch' ? spawn : { type: 'probe' }],
  };
}

function onStop(state: LifecycleState, now: number, policy: LifecyclePolicy): Decision {
  if (isFinal(state) || state.phase === 'stopping') return { state, actions: [] };
  // An attached process belongs to another supervisor, and in a backoff or an open circuit no process exists.
  if (policy.mode === 'launch' && isAlive(state)) return end(state, now, policy);
  return { state: { ...state, phase: 'stopped', wakeAt: undefined }, actions: [announce('stopped')] };
}

function onRestart(state: LifecycleState, now: number, policy: LifecyclePolicy): Decision {
  if (isAlive(state)) return end(state, now, policy);
  if (state.phase === 'stopping') return { state, actions: [] };
  // A person who asks does not wait for a backoff.
  return { state: respawning({ ...state, attempt: 0, recentExits: [], wakeAt: undefined }), actions: [spawn] };
}

function respawning(state: LifecycleState): LifecycleState {
  return { ...state, phase: 'starting', restarts: state.restarts + 1 };
}

/** Asks the process to end. One that is still being spawned gets the signal when it exists. */
function end(state: LifecycleState, now: number, { stopSignal, stopGraceMs }: LifecyclePolicy): Decision {
  return {
    state: { ...state, phase: 'stopping', wakeAt: now + stopGraceMs },
    actions: state.pid === undefined ? [] : [{ type: 'signal', signal: stopSignal }],
  };
}

function onSpawned(state: LifecycleState, now: number, policy: LifecyclePolicy): Decision {
  if (state.phase === 'stopping') return end(state, now, policy);
  return { state, actions: [{ type: 'probe' }] };
}

function onSpawnFailed(state: LifecycleState, now: number, policy: LifecyclePolicy): Decision {
  return state.phase === 'stopping' ? onStopped(state) : onUnexpectedExit(state, now, policy);
}

function onExited(state: LifecycleState, exit: Exit, now: number, policy: LifecyclePolicy): Decision {
  const code = exit.code ?? 128 + (constants.signals[exit.signal as NodeJS.Signals] ?? 0);
  const stopping = state.phase === 'stopping';
  const asAsked = stopping && exit.signal !== null && exit.signal !== 'SIGKILL';
  const exited = { ...state, lastExit: exit, exitCode: Math.max(state.exitCode, asAsked ? 0 : code) };
  return stopping ? onStopped(exited) : onUnexpectedExit(exited, now, policy);
}

/** The process ended as asked: it stays down, or its replacement starts immediately (G-6). */
function onStopped(state: LifecycleState): Decision {
  const stopped = { ...state, pid: undefined, startedAt: undefined, wakeAt: undefined };
  if (!state.desired) return { state: { ...stopped, phase: 'stopped' }, actions: [announce('stopped')] };
  return { state: respawning({ ...stopped, attempt: 0 }), actions: [spawn] };
}

/** The process ended unexpectedly, or could not be spawned (G-10). */
function onUnexpectedExit(state: LifecycleState, now: number, policy: LifecyclePolicy): Decision {
  const dead = { ...state, pid: undefined, startedAt: undefined, wakeAt: undefined };
  if (policy.restart === 'never') return { state: { ...dead, phase: 'exited' }, actions: [announce('exited')] };
  const ranMs = state.startedAt === undefined ? 0 : now - state.startedAt;
  const attempt = ranMs > policy.backoffCapMs ? 0 : state.attempt;
  const recentExits = [...state.recentExits.filter((at) => at > now - policy.windowMs), now];
  if (recentExits.length > policy.restartsInWindow) {
    return {
      state: { ...dead, recentExits, phase: 'circuit-open', wakeAt: now + policy.coolDownMs },
      actions: [announce('exited'), announce('circuit-open')],
    };
  }
  const delay = Math.min(policy.backoffCapMs, policy.backoffBaseMs * 2 ** Math.min(attempt, 30));
  return {
    state: { ...dead, recentExits, phase: 'restarting', attempt: attempt + 1, wakeAt: now + delay },
    actions: [announce('exited')],
  };
}

/** S-7: state and health change together. */
function onProbePassed(state: LifecycleState, degraded: string | undefined): Decision {
  const phase = degraded === undefined ? 'running' : 'degraded';
  return {
    state: { ...state, phase, wakeAt: undefined, lastError: degraded ?? state.lastError },
    actions: state.phase === phase ? [] : [announce(phase)],
  };
}

function onProbeFailed(state: LifecycleState, now: number, policy: LifecyclePolicy): Decision {
  const failedProbes = state.failedProbes + 1;
  // S-3: an attached process is starting until the first connection, however long that takes.
  const tolerated = failedProbes < policy.probeFailures || (policy.mode === 'attach' && state.phase === 'starting');
  if (tolerated || state.phase === 'unhealthy') return { state: { ...state, failedProbes }, actions: [] };
  const { restartUnhealthyAfterMs: patience, startGraceMs } = policy;
  const wakeAt = patience === undefined ? undefined : Math.max(now, (state.startedAt ?? now) + startGraceMs) + patience;
  return { state: { ...state, failedProbes, phase: 'unhealthy', wakeAt }, actions: [announce('unhealthy')] };
}

function onWoken(state: LifecycleState, now: number, policy: LifecyclePolicy): Decision {
  switch (state.phase) {
    case 'stopping':
      return { state, actions: state.pid === undefined ? [] : [announce('killed'), { type: 'signal', signal: 'SIGKILL' }] };
    case 'unhealthy':
      return onRestart(state, now, policy);
    case 'restarting':
      return { state: respawning(state), actions: [spawn] };
    case 'circuit-open':
      return { state: respawning({ ...state, attempt: 0, recentExits: [] }), actions: [announce('circuit-closed'), spawn] };
    default:
      return { state, actions: [] };
  }
}
