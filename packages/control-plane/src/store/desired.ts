import type { Updateable } from 'kysely';
import { DroverError } from '@drover/foundation';
import { killGraceMs } from '@drover/spec';
import type { SandboxTable, StoredHost, StoredSandbox } from '../database/index.ts';
import { hasEnded, runIsOver, type DesiredState } from '../model/index.ts';
import { sandboxRow } from './rows.ts';
import type { DesiredOptions } from './drafts.ts';

/**
 * What a wish changes; undefined when it is the one that stands already. The row and its host are locked.
 * @throws {DroverError} sandbox-not-running, failed-precondition
 */
export function desiredPatch(
  row: StoredSandbox,
  host: StoredHost | undefined,
  desired: DesiredState,
  now: number,
  options: DesiredOptions = {},
): Updateable<SandboxTable> | undefined {
  const over = runIsOver(sandboxRow(row));
  const graceMs = desired === 'stopped' && options.kill === true ? killGraceMs : options.graceMs;
  const why = { stop_cause: options.cause ?? (desired === 'deleted' ? 'removed' : 'asked'), stop_by: options.by ?? '' };
  if (row.desired === 'stopped' && desired === 'stopped') return hastened(row, graceMs ?? 0, options.cause === 'contained' ? why : {});
  // Wanted running and its run is over: to want it running again is a new start.
  if (row.desired === desired && !(desired === 'running' && over)) return undefined;
  if (row.desired === 'deleted') {
    throw new DroverError('failed-precondition', `${row.name} is being deleted`, { hint: 'create a new sandbox' });
  }
  const generation = row.generation + 1;
  const change = { desired, generation, ...(graceMs === undefined ? {} : { stop_grace_ms: graceMs }) };
  switch (desired) {
    case 'running': {
      const startsAgain = over || row.desired === 'stopped';
      return startsAgain ? { ...change, ...startPatch(row, host, generation) } : change;
    }
    case 'paused':
      if (over || row.desired === 'stopped') {
        throw new DroverError('sandbox-not-running', `${row.name} is not running`, {
          hint: `start it with \`drover sandbox start ${row.name}\``,
        });
      }
      return change;
    case 'stopped': {
      const nowhere = row.host_id === null && row.observed === null;
      return {
        ...change,
        ...why,
        pending_reason: '',
        pending_message: '',
        ...(nowhere ? neverStarted(generation, now) : {}),
        ...(hasEnded(sandboxRow(row).observed) && row.hold === 'all' ? { hold: 'slot' as const } : {}),
      };
    }
    case 'deleted': {
      // On no host, or on one that is gone for good: nobody will report the end of it.
      const atOnce = row.host_id === null || (host !== undefined && host.removed_at !== null);
      // What was to be stopped already ends for that reason.
      const waitsNoMore = { ...change, ...(row.desired === 'stopped' || over ? {} : why), pending_reason: '', pending_message: '' };
      return atOnce ? { ...waitsNoMore, deleted_at: now, hold: 'nothing' } : waitsNoMore;
    }
    default:
      return desired satisfies never;
  }
}

/** A stop that is wanted already and has not ended: it may become shorter. The agent keeps the shortest in any case. */
function hastened(row: StoredSandbox, graceMs: number, why: Updateable<SandboxTable>): Updateable<SandboxTable> | undefined {
  if (hasEnded(sandboxRow(row).observed)) return undefined;
  const shorter = graceMs > 0 && (row.stop_grace_ms === 0 || graceMs < row.stop_grace_ms);
  return shorter ? { generation: row.generation + 1, stop_grace_ms: graceMs, ...why } : undefined;
}

/** It was stopped before any host had begun with it. */
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
 * A new start. On a host, where its files are, it needs its whole request again (while it was stopped it held a slot only):
 * where that is not free, it waits for it there, as `pending`. On none, it is placed and made anew.
 */
function startPatch(row: StoredSandbox, host: StoredHost | undefined, generation: number): Updateable<SandboxTable> {
  // How the run before ended is no part of this one.
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
