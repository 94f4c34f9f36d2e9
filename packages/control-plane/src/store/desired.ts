import type { Updateable } from 'kysely';
import { DroverError } from '@drover/foundation';
import { killGraceMs } from '@drover/spec';
import type { SandboxTable, StoredHost, StoredSandbox } from '../database/index.ts';
import { hasEnded, runIsOver, type DesiredState } from '../model/index.ts';
import { sandboxRow } from './rows.ts';
import type { DesiredOptions } from './drafts.ts';

/**
 * The columns that a request for a desired state changes; undefined when it changes nothing. The caller has locked the row and its host.
 * @throws {DroverError} sandbox-not-running, failed-precondition
 */
export function desiredPatch(
  row: StoredSandbox,
  host: StoredHost | undefined,
  desired: DesiredState,
  now: number,
  options: DesiredOptions = {},
): Updateable<SandboxTable> | undefined {
  const runEnded = runIsOver(sandboxRow(row));
  const graceMs = desired === 'stopped' && options.kill === true ? killGraceMs : options.graceMs;
  const cause = { stop_cause: options.cause ?? (desired === 'deleted' ? 'removed' : 'asked'), stop_by: options.by ?? '' };
  if (row.desired === 'stopped' && desired === 'stopped')
    return shortenedStop(row, graceMs ?? 0, options.cause === 'contained' ? cause : {});
  // A request to run a sandbox whose run has ended is a new start, although its desired state is already `running`.
  if (row.desired === desired && !(desired === 'running' && runEnded)) return undefined;
  if (row.desired === 'deleted') {
    throw new DroverError('failed-precondition', `${row.name} is being deleted`, { hint: 'create a new sandbox' });
  }
  const generation = row.generation + 1;
  const change = { desired, generation, ...(graceMs === undefined ? {} : { stop_grace_ms: graceMs }) };
  switch (desired) {
    case 'running': {
      const startsAgain = runEnded || row.desired === 'stopped';
      return startsAgain ? { ...change, ...startPatch(row, host, generation) } : change;
    }
    case 'paused':
      if (runEnded || row.desired === 'stopped') {
        throw new DroverError('sandbox-not-running', `${row.name} is not running`, {
          hint: `start it with \`drover sandbox start ${row.name}\``,
        });
      }
      return change;
    case 'stopped': {
      const neverPlaced = row.host_id === null && row.observed === null;
      return {
        ...change,
        ...cause,
        pending_reason: '',
        pending_message: '',
        ...(neverPlaced ? neverStarted(generation, now) : {}),
        ...(hasEnded(sandboxRow(row).observed) && row.hold === 'all' ? { hold: 'slot' as const } : {}),
      };
    }
    case 'deleted': {
      // Without a host, or on a removed one, no host will report the end of the deletion.
      const noHost = row.host_id === null || (host !== undefined && host.removed_at !== null);
      // A sandbox that has ended, or is being stopped, keeps the cause of that stop.
      const deleting = { ...change, ...(row.desired === 'stopped' || runEnded ? {} : cause), pending_reason: '', pending_message: '' };
      return noHost ? { ...deleting, deleted_at: now, hold: 'nothing' } : deleting;
    }
    default:
      return desired satisfies never;
  }
}

/** Shortens the grace of a stop under way. A longer grace changes nothing: the agent applies the shortest that it received. */
function shortenedStop(row: StoredSandbox, graceMs: number, cause: Updateable<SandboxTable>): Updateable<SandboxTable> | undefined {
  if (hasEnded(sandboxRow(row).observed)) return undefined;
  const shorter = graceMs > 0 && (row.stop_grace_ms === 0 || graceMs < row.stop_grace_ms);
  return shorter ? { generation: row.generation + 1, stop_grace_ms: graceMs, ...cause } : undefined;
}

/** The observed state of a sandbox that was stopped before any host created it. */
export function neverStarted(generation: number, now: number): Updateable<SandboxTable> {
  return {
    observed: 'stopped',
    observed_generation: generation,
    reason: 'never-started',
    message: 'it was stopped before it ran',
    hint: '',
    finished_at: now,
  };
}

/**
 * A new start. A placed sandbox starts on its host, which has its files. It reserves its whole request again (a stopped sandbox holds one
 * slot only), or is `pending` until its host has room. An unplaced sandbox is placed and created again.
 */
function startPatch(row: StoredSandbox, host: StoredHost | undefined, generation: number): Updateable<SandboxTable> {
  // Clears the outcome of the previous run.
  const start = {
    start_generation: generation,
    exit_code: null,
    exit_signal: '',
    out_of_memory: 0,
    started_at: null,
    finished_at: null,
    stop_cause: '',
    stop_by: '',
  };
  if (host === undefined) return { ...start, placed_generation: generation, observed: null, observed_sequence: 0 };
  if (row.hold === 'all') return start;
  const room =
    host.scheduling !== 'draining' &&
    host.reserved_cpu_millis + row.cpu_millis <= host.cpu_millis &&
    host.reserved_memory_bytes + row.memory_bytes <= host.memory_bytes;
  return room
    ? { ...start, hold: 'all' }
    : {
        ...start,
        pending_reason: 'unschedulable',
        pending_message: `its files are on ${host.name}, which ${host.scheduling === 'draining' ? 'is draining' : 'has no room for it now'}`,
      };
}
