import { DroverError, type HostId } from '@drover/foundation';
import { closeFailuresMax, interruptedPlansMax } from '../../limits.ts';
import { startOf, type SandboxRow } from '../../model/index.ts';
import type { StartState } from './start-state.ts';

/** Whether init can be reached, according to the store. The init of a starting sandbox listens soon: the host's tunnel waits for it. */
export function isDialable(row: SandboxRow): boolean {
  return (
    row.hostId !== undefined &&
    row.deletedAt === undefined &&
    row.lostSince === undefined &&
    (row.observed === 'starting' || row.observed === 'running' || row.observed === 'stopping')
  );
}

/** Whether the sandbox must have a session. For any other sandbox, the end of a session is intended (I-24). */
export function isToRun(row: SandboxRow | undefined): row is SandboxRow {
  return row !== undefined && row.desired === 'running' && isDialable(row);
}

/** Why a dial ended without a session (SessionFailed). */
export type FailureReason =
  | 'not-running'
  | 'no-address'
  | 'host-not-connected'
  | 'unreachable'
  | 'init-interrupted'
  | 'fd-leak-ceiling'
  | 'internal';

export class DialFailed extends DroverError {
  readonly reason: FailureReason;

  constructor(reason: FailureReason, message: string, hint: string, cause?: unknown) {
    super('session-unavailable', message, { hint, cause });
    this.reason = reason;
  }
}

export type Reachable = SandboxRow & { readonly hostId: HostId };

/** Each attempt inspects the row again (I-23). @throws {DialFailed} */
export function mustBeReachable(row: SandboxRow | undefined, isConnected: (hostId: HostId) => boolean): Reachable {
  if (row === undefined || !isDialable(row)) {
    const state = row === undefined || row.deletedAt !== undefined ? 'removed' : (row.observed ?? 'waiting for a place');
    throw new DialFailed('not-running', `the sandbox is not running: it is ${state}`, '`drover sandbox get` shows its state');
  }
  const { hostId } = row;
  if (hostId === undefined || row.address === '') {
    throw new DialFailed('no-address', 'the sandbox has no address yet', '`drover sandbox get` shows its state');
  }
  if (!isConnected(hostId)) throw new DialFailed('host-not-connected', 'the host of the sandbox is not connected', 'see `drover host ls`');
  // Not a copy: copying the row would parse its spec.
  return row as Reachable;
}

/** How a connection ended: with its sandbox, or before it. */
export type ConnectionEnd = 'sandbox-ended' | 'broken';

/**
 * Decides what follows a failed attempt.
 * @param attempt `established`: it had a session; `slow`: it redialled a lost session
 * @param leftMs how long the dial may still take
 * @param delayMs until the next attempt
 */
export function afterFailure(
  { closeFailures }: StartState,
  attempt: { readonly established: boolean; readonly slow: boolean },
  leftMs: number,
  delayMs: number,
): 'leaking' | 'broken' | 'give-up' | 'retry' {
  if (closeFailures >= closeFailuresMax) return 'leaking';
  if (attempt.established) return 'broken';
  return attempt.slow || delayMs >= leftMs ? 'give-up' : 'retry';
}

/** Decides what follows the end of a session. @param row as the store holds it now @param start the start of the session */
export function afterSession(
  { interruptedPlans }: StartState,
  row: SandboxRow | undefined,
  start: number,
  end: ConnectionEnd,
): 'done' | 'redial-now' | 'redial' | 'fail-start' {
  // I-24: a stop, a pause or a removal ends a session as intended.
  if (!isToRun(row)) return 'done';
  if (end === 'sandbox-ended' && startOf(row) !== start) return 'redial-now';
  return interruptedPlans >= interruptedPlansMax ? 'fail-start' : 'redial';
}
