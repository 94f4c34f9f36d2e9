import { endReason, hasEnded, type EndColumns, type EndReason } from './end.ts';
import type { SandboxStateName } from '@drover/protocol';
import type { SandboxRow } from './sandbox.ts';

/** The displayed state of a sandbox, with a stable reason for programs, and a sentence and a hint for people (L-25). */
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

/** Whether the run of the newest start request has ended or failed. Only another request starts the sandbox again. */
export function runIsOver(row: Pick<SandboxRow, 'observed' | 'observedGeneration' | 'startGeneration'>): boolean {
  return hasEnded(row.observed) && row.observedGeneration >= row.startGeneration;
}

/** The number of the start that the host reports. The host counts a start once it runs, slightly after its init first responds. */
export function startOf(row: Pick<SandboxRow, 'observed' | 'startCount'>): number {
  return row.observed === 'starting' ? row.startCount + 1 : row.startCount;
}

/** The number of the requested or running start, or else of the last one. */
export function currentStart(
  row: Pick<SandboxRow, 'desired' | 'observed' | 'observedGeneration' | 'startGeneration' | 'startCount'>,
): number {
  const startRequested = hasEnded(row.observed) && !runIsOver(row) && row.desired !== 'stopped';
  return startRequested || row.observed === 'preparing' || row.observed === 'starting' ? row.startCount + 1 : row.startCount;
}

/** The displayed state of a sandbox, from its desired state, its placement and its observed state (L-25). */
export function sandboxState(row: StateColumns): DisplayedState {
  const ended = hasEnded(row.observed) || row.deletedAt !== undefined;
  const explanation = ended ? endReason(row) : { reason: row.reason, message: row.message, hint: row.hint };
  const noHint = { hint: '' };
  if (row.deletedAt !== undefined) return { state: 'deleted', ...explanation };
  if (row.desired === 'deleted') return { state: 'deleting', ...explanation };
  if (row.lostSince !== undefined) {
    return {
      state: 'lost',
      reason: 'host-down',
      message: 'its host is down; it is adopted when the host reconnects, or can be removed and created again',
      ...noHint,
    };
  }
  if (row.observed !== undefined && hasEnded(row.observed) && (runIsOver(row) || row.desired === 'stopped')) {
    return { state: row.observed, ...explanation };
  }
  if (row.pendingReason !== '') return { state: 'pending', reason: row.pendingReason, message: row.pendingMessage, ...noHint };
  if (row.hostId === undefined) return { state: 'pending', reason: 'placing', message: 'a host is being chosen', ...noHint };
  if (row.observed === undefined) return { state: 'scheduled', reason: 'scheduled', message: 'its host is about to create it', ...noHint };
  if (hasEnded(row.observed)) return { state: 'scheduled', reason: 'scheduled', message: 'its host is about to start it again', ...noHint };
  if (row.desired === 'stopped') return { state: 'stopping', ...explanation };
  return { state: row.observed, ...explanation };
}
