import type { SandboxId } from '@drover/foundation';
import type { SandboxRow } from '../model/index.ts';

/** A command that changes the host's copy. */
export interface CopyStep {
  readonly kind: 'create' | 'start' | 'stop' | 'pause' | 'resume' | 'cut';
  /** The desired state. */
  readonly row: SandboxRow;
}

/** The next step of one sandbox on one host (L-22). */
export type Step =
  | CopyStep
  /** `destroy`: the sandbox is to be deleted. `absent`: the host holds no copy, which the store must record. */
  | { readonly kind: 'destroy' | 'absent'; readonly row: SandboxRow }
  /** Removes a stale copy: its sandbox is deleted, placed elsewhere, or has since been placed here again (L-26). */
  | { readonly kind: 'fence'; readonly id: SandboxId; readonly generation: number; readonly placedHere: boolean };

/** The sandbox, and the generation that the step is for. */
export function stepSubject(step: Step): { readonly id: SandboxId; readonly generation: number } {
  return step.kind === 'fence' ? step : { id: step.row.id, generation: step.row.generation };
}

/** Steps of one lane run in sequence. A sandbox has one lane, and another one for its network. */
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

/** Whether `step` must be sent immediately, before the result of `running`. */
export function supersedes(step: Step, running: Step): boolean {
  // The host then cancels the creation of a sandbox that is no longer to run.
  if (beginsRun(running)) return !beginsRun(step);
  // I-4: a stop with a shorter grace, or a deletion, does not wait for the end of a longer one.
  return running.kind === 'stop' && (step.kind === 'destroy' || (step.kind === 'stop' && isShorter(step.row, running.row)));
}

/** A grace of 0 is the host's default, which is the longest. */
function isShorter({ stopGraceMs: a }: SandboxRow, { stopGraceMs: b }: SandboxRow): boolean {
  return a > 0 && (b === 0 || a < b);
}
