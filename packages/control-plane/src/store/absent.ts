import type { Updateable } from 'kysely';
import { neverStarted } from './desired.ts';
import { sandboxRow } from './rows.ts';
import type { SandboxTable, StoredSandbox } from '../database/index.ts';
import { runIsOver } from '../model/index.ts';

/** The columns that change when the host that the sandbox is placed on holds no copy of it. */
export function absentPatch(row: StoredSandbox, now: number): Updateable<SandboxTable> {
  const released = { hold: 'nothing' as const, lost_since: null, pending_reason: '', pending_message: '' };
  if (row.desired === 'deleted') return { ...released, deleted_at: now };
  const unplaced = { ...released, host_id: null, observed_sequence: 0, address: '' };
  if (runIsOver(sandboxRow(row))) return unplaced;
  if (row.desired === 'stopped') {
    return row.observed === null
      ? { ...unplaced, ...neverStarted(row.generation, now) }
      : { ...unplaced, observed: 'stopped', observed_generation: row.generation, finished_at: row.finished_at ?? now };
  }
  return {
    ...unplaced,
    observed: 'failed',
    observed_generation: row.generation,
    reason: 'copy-lost',
    message: 'its host no longer holds a copy of it',
    hint: 'start it to create it again; the files that it wrote are lost',
    finished_at: now,
  };
}
