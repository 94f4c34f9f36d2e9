import type { SandboxId } from '@drover/foundation';
import type { SandboxRow } from '../model/index.ts';

/** A command that changes the host's copy. */
export interface CopyStep {
  readonly kind: 'create' | 'start' | 'stop' | 'pause' | 'resume' | 'cut';
  /** The desired state. */
  readonly row: SandboxRow;
}

/** What one sandbox on one host needs next (L-22). */
export type Step =
  | CopyStep
  /** `destroy`: it is to be deleted. `absent`: the host holds no copy, which only the store has to record. */
  | { readonly kind: 'destroy' | 'absent'; readonly row: SandboxRow }
  /** A copy that does not belong here: its sandbox is deleted, placed elsewhere, or was placed here again since (L-26). */
  | { readonly kind: 'fence'; readonly id: SandboxId; readonly generation: number; readonly placedHere: boolean };

/** The sandbox, and the generation that the step is for. */
export function stepSubject(step: Step): { readonly id: SandboxId; readonly generation: number } {
  return step.kind === 'fence' ? step : { id: step.row.id, generation: step.row.generation };
}

/** Steps of one lane run one after another: those of a sandbox, and beside them those of its network. */
export type Lane = SandboxId | `${SandboxId} network`;

export function networkLane(id: SandboxId): Lane {
  return `${id} network`;
}

export function laneOf(step: Step): Lane {
  const { id } = stepSubject(step);
  return step.kind === 'cut' ? networkLane(id) : id;
}

/** Whether the step begins a run. */
export function beginsRun({ kind }: Step): boolean {
  return kind === 'create' || kind === 'start';
}

/** Whether `step` must reach the host now, although the result of `running` is still awaited. */
export function supersedes(step: Step, running: Step): boolean {
  // The host then cancels the creation of a sandbox that is no longer desired.
  if (beginsRun(running)) return !beginsRun(step);
  // I-4: a stop with a shorter grace, or a deletion, does not wait for the end of a longer one.
  return running.kind === 'stop' && (step.kind === 'destroy' || (step.kind === 'stop' && isShorter(step.row, running.row)));
}

/** A grace of 0 is the host's own, which is the longest. */
function isShorter({ stopGraceMs: a }: SandboxRow, { stopGraceMs: b }: SandboxRow): boolean {
  return a > 0 && (b === 0 || a < b);
}
