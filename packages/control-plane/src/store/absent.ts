import type { Updateable } from 'kysely';
import { neverStarted } from './desired.ts';
import { sandboxRow } from './rows.ts';
import type { SandboxTable, StoredSandbox } from '../database/index.ts';
import { runIsOver } from '../model/index.ts';

/** What changes when the host that the sandbox is placed on holds no copy of it. */
export function absentPatch(row: StoredSandbox, now: number): Updateable<SandboxTable> {
  const freed = { hold: 'nothing' as const, lost_since: null, pending_reason: '', pending_message: '' };
  if (row.desired === 'deleted') return { ...freed, deleted_at: now };
  const nowhere = { ...freed, host_id: null, observed_sequence: 0, address: '' };
  if (runIsOver(sandboxRow(row))) return nowhere;
  if (row.desired === 'stopped') {
    return row.observed === null
      ? { ...nowhere, ...neverStarted(row.generation, now) }
      : { ...nowhere, observed: 'stopped', observed_generation: row.generation, finished_at: row.finished_at ?? now };
  }
  return {
    ...nowhere,
    observed: 'failed',
    observed_generation: row.generation,
    reason: 'copy-lost',
    message: 'its host no longer has a copy of it',
    hint: 'start it to create it again, without the files it had written',
    finished_at: now,
  };
}
