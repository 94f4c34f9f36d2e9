import { endReason, hasEnded, type EndColumns, type EndReason } from './end.ts';
import type { SandboxStateName } from '@drover/protocol';
import type { SandboxRow } from './sandbox.ts';

/** What people see of a sandbox: the state, a stable word for programs, and a sentence and a hint for a person (L-25). */
export interface DisplayedState extends EndReason {
  readonly state: SandboxStateName;
}

/** The columns that the displayed state is computed from. */
export type StateColumns = EndColumns &
  Pick<
    SandboxRow,
    | 'desired'
    | 'startGeneration'
    | 'hostId'
    | 'pendingReason'
    | 'pendingMessage'
    | 'observed'
    | 'observedGeneration'
    | 'lostSince'
    | 'deletedAt'
  >;

/** Whether its run has ended or failed since the newest request to start it: only another request starts it again. */
export function runIsOver(row: Pick<SandboxRow, 'observed' | 'observedGeneration' | 'startGeneration'>): boolean {
  return hasEnded(row.observed) && row.observedGeneration >= row.startGeneration;
}

/** The number of the start that the host reports. The host counts a start when it runs; its init responds a moment earlier. */
export function startOf(row: Pick<SandboxRow, 'observed' | 'startCount'>): number {
  return row.observed === 'starting' ? row.startCount + 1 : row.startCount;
}

/** The number of the displayed start: the one that is requested or under way, or else the last. */
export function currentStart(
  row: Pick<SandboxRow, 'desired' | 'observed' | 'observedGeneration' | 'startGeneration' | 'startCount'>,
): number {
  const asked = hasEnded(row.observed) && !runIsOver(row) && row.desired !== 'stopped';
  return asked || row.observed === 'preparing' || row.observed === 'starting' ? row.startCount + 1 : row.startCount;
}

/** The displayed state of a sandbox, from its desired state, its placement and its observed state (L-25). */
export function sandboxState(row: StateColumns): DisplayedState {
  const over = hasEnded(row.observed) || row.deletedAt !== undefined;
  const said = over ? endReason(row) : { reason: row.reason, message: row.message, hint: row.hint };
  const noHint = { hint: '' };
  if (row.deletedAt !== undefined) return { state: 'deleted', ...said };
  if (row.desired === 'deleted') return { state: 'deleting', ...said };
  if (row.lostSince !== undefined) {
    return {
      state: 'lost',
      reason: 'host-down',
      message: 'its host does not answer; it goes on when the host is back, or can be removed and created again',
      ...noHint,
    };
  }
  if (row.observed !== undefined && hasEnded(row.observed) && (runIsOver(row) || row.desired === 'stopped')) {
    return { state: row.observed, ...said };
  }
  if (row.pendingReason !== '') return { state: 'pending', reason: row.pendingReason, message: row.pendingMessage, ...noHint };
  if (row.hostId === undefined) return { state: 'pending', reason: 'placing', message: 'a host is being chosen', ...noHint };
  if (row.observed === undefined)
    return { state: 'scheduled', reason: 'scheduled', message: 'its host has been told to create it', ...noHint };
  if (hasEnded(row.observed))
    return { state: 'scheduled', reason: 'scheduled', message: 'its host has been told to start it again', ...noHint };
  if (row.desired === 'stopped') return { state: 'stopping', ...said };
  return { state: row.observed, ...said };
}
