import type { Timestamp } from '@bufbuild/protobuf/wkt';
import type { Updateable } from 'kysely';
import type { sandbox } from '@drover/protocol';
import { clip } from '@drover/foundation';
import { maxSignalNameLength } from '../limits.ts';
import { changeSandbox, sandboxEvent } from './change.ts';
import type { Tx, SandboxTable, StoredSandbox } from '../database/index.ts';
import { observedState, sandboxRow } from './rows.ts';
import { hasEnded } from '../model/index.ts';

/**
 * The columns that an observation changes; undefined for none. The sandbox is placed on the reporting host.
 *
 * An observation is dropped when it is not newer than the stored one (a host numbers the observations of a sandbox in sequence), or when
 * its copy is from an earlier placement (L-26). A full report at registration is `authoritative`, and its sequence is not compared: an agent
 * that lost its state directory counts from one again.
 */
export function observationPatch(
  row: StoredSandbox,
  seen: sandbox.SandboxObservation,
  authoritative: boolean,
): Updateable<SandboxTable> | undefined {
  const state = observedState(seen.state);
  const generation = Number(seen.generation);
  const sequence = Number(seen.sequence);
  if (state === undefined || generation < row.placed_generation) return undefined;
  if (!authoritative && sequence <= row.observed_sequence) return undefined;

  const ended = hasEnded(state);
  const runEnded = ended && generation >= row.start_generation;
  // A start that the control plane gave up stays failed, whatever its copy does until it is stopped.
  const givenUp = row.given_up_generation >= row.start_generation;
  return {
    ...(givenUp
      ? {}
      : {
          observed: state,
          observed_generation: generation,
          reason: seen.reason,
          message: seen.message,
          hint: seen.hint,
          exit_code: seen.exitCode ?? null,
          out_of_memory: seen.outOfMemory ? 1 : 0,
          exit_signal: clip(seen.exitSignal, maxSignalNameLength),
          finished_at: milliseconds(seen.finishedAt),
        }),
    observed_sequence: sequence,
    address: seen.address,
    runtime: seen.runtime,
    image_digest: seen.imageDigest,
    observed_network_cut: seen.networkCut ? 1 : 0,
    observed_registration_closed: seen.registrationClosed ? 1 : 0,
    start_count: Number(seen.startCount),
    started_at: milliseconds(seen.startedAt),
    lost_since: null,
    ...(ended ? {} : { pending_reason: '', pending_message: '' }),
    hold: holdAfter(row, ended, runEnded),
  };
}

function holdAfter(row: StoredSandbox, ended: boolean, runEnded: boolean): StoredSandbox['hold'] {
  if (!ended) return 'all';
  // The end is of an earlier run, and a new start is requested: its reservation stays.
  return runEnded || row.desired === 'stopped' || row.desired === 'deleted' ? 'slot' : row.hold;
}

/** Applies a host's observations to its locked rows, and emits their events. @returns the changed rows */
export async function applyObservations(
  tx: Tx,
  hostId: string,
  rows: readonly StoredSandbox[],
  observations: readonly sandbox.SandboxObservation[],
  authoritative: boolean,
): Promise<readonly StoredSandbox[]> {
  const current = new Map(rows.map((row) => [row.id, row]));
  const changed = new Map<string, StoredSandbox>();
  for (const seen of observations) {
    const row = current.get(seen.sandboxId);
    if (row === undefined || row.host_id !== hostId || row.deleted_at !== null) continue;
    const patch = observationPatch(row, seen, authoritative);
    if (patch === undefined) continue;
    const after = await changeSandbox(tx, row, patch);
    if (row.lost_since !== null && !hasEnded(observedState(seen.state))) {
      tx.emit(sandboxEvent(sandboxRow(after), 'SandboxAdopted', { lostSince: row.lost_since }));
    }
    current.set(row.id, after);
    changed.set(row.id, after);
  }
  return [...changed.values()];
}

/** Whether the sandbox is deleted when its run ends (--rm). */
export function removesItself(row: StoredSandbox): boolean {
  // A contained sandbox stays for the investigation.
  return row.desired !== 'deleted' && row.remove_on_exit === 1 && row.containment === '{}';
}

function milliseconds(time: Timestamp | undefined): number | null {
  return time === undefined ? null : Number(time.seconds) * 1000 + Math.floor(time.nanos / 1_000_000);
}
