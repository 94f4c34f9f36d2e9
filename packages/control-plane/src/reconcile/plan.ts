import type { SandboxId } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import { mayNotRun, runIsOver, type SandboxRow } from '../model/index.ts';

const { SandboxState } = sandbox;

/** Changes the host's copy; answered with what the host then sees of it. */
export interface CopyStep {
  readonly kind: 'create' | 'start' | 'stop' | 'pause' | 'resume' | 'cut';
  /** What is wanted there. */
  readonly row: SandboxRow;
}

/** What one sandbox on one host needs next (L-22). */
export type Step =
  | CopyStep
  /** Wanted deleted, or (`gone`) without a copy on the host: the store is told. */
  | { readonly kind: 'destroy' | 'gone'; readonly row: SandboxRow }
  /** A copy that does not belong here: the sandbox is deleted, placed elsewhere, or placed here anew since (L-26). */
  | { readonly kind: 'fence'; readonly id: SandboxId; readonly generation: number; readonly placedHere: boolean };

/**
 * The steps that bring a host from what is seen on it to what is wanted: at most one for each sandbox, and one for its network.
 * @param wanted everything placed on the host and not deleted
 * @param seen everything that the host holds
 */
export function planHost(wanted: readonly SandboxRow[], seen: readonly sandbox.SandboxObservation[]): readonly Step[] {
  const copies = new Map(seen.map((copy) => [copy.sandboxId, copy]));
  const here = new Set<string>(wanted.map((row) => row.id));
  return [
    ...wanted.flatMap((row) => [planNetwork(row, copies.get(row.id)), planSandbox(row, copies.get(row.id))]),
    ...seen.filter((copy) => !here.has(copy.sandboxId)).map((copy) => fence(copy, false)),
  ].filter((step) => step !== undefined);
}

/** One sandbox, but for its network: what is wanted of it here (undefined: nothing), and the copy that is here. */
export function planSandbox(row: SandboxRow | undefined, copy: sandbox.SandboxObservation | undefined): Step | undefined {
  if (row === undefined) return copy === undefined ? undefined : fence(copy, false);
  if (copy === undefined) return planAbsent(row);
  // L-26: made for an earlier placement; its files are not those that its user left.
  if (Number(copy.generation) < row.placedGeneration) return fence(copy, true);
  switch (row.desired) {
    case 'deleted':
      return { kind: 'destroy', row };
    case 'stopped':
      return isOver(copy.state) ? undefined : { kind: 'stop', row };
    case 'paused':
    case 'running':
      return planAlive(row, copy);
    default:
      return row.desired satisfies never;
  }
}

/**
 * I-4: its network, which is cut and restored beside whatever else is done to it: while it is made, before it is paused, and while a
 * stop gives it time. What is made or started later carries the wish, from its first packet on.
 */
export function planNetwork(row: SandboxRow | undefined, copy: sandbox.SandboxObservation | undefined): CopyStep | undefined {
  if (row === undefined || copy === undefined || row.desired === 'deleted') return undefined;
  const belongs = Number(copy.generation) >= row.placedGeneration;
  const isAsWanted = row.networkCut === copy.networkCut && (row.revokedAt !== undefined) === copy.registrationClosed;
  return belongs && !isOver(copy.state) && !isAsWanted ? { kind: 'cut', row } : undefined;
}

/** There is no copy here. */
function planAbsent(row: SandboxRow): Step | undefined {
  if (row.desired === 'deleted') return { kind: 'gone', row };
  const everRan = row.observed === 'running' || row.observed === 'paused' || row.observed === 'stopping' || row.observed === 'stopped';
  // A creation that failed left nothing behind that a new start could lose.
  const wantsCopy = row.desired !== 'stopped' && !runIsOver(row) && !everRan;
  if (!wantsCopy) return { kind: 'gone', row };
  // I-4: a pause of a sandbox that does not run yet keeps it from running at all.
  return row.pendingReason === '' && !mayNotRun(row) ? { kind: 'create', row } : undefined;
}

/** Wanted running or paused, and there is a copy. */
function planAlive(row: SandboxRow, copy: sandbox.SandboxObservation): Step | undefined {
  if (isOver(copy.state)) {
    // Its run is over: it is begun again only for a wish that came after (`drover run` ends with its command).
    if (runIsOver(row) || Number(copy.generation) >= row.startGeneration) return undefined;
    return row.pendingReason === '' && !mayNotRun(row) ? { kind: 'start', row } : undefined;
  }
  // The control plane gave it up (its init plan failed, for instance): nothing of it is to go on running.
  if (runIsOver(row) && row.observed === 'failed') return { kind: 'stop', row };
  if (copy.state === SandboxState.PREPARING) {
    // A try that failed for what may pass, or one under way from before this link: asked for again, it is the same one (L-19).
    return runIsOver(row) || mayNotRun(row) ? undefined : { kind: copy.startCount === 0n ? 'create' : 'start', row };
  }
  if (row.desired === 'paused') return copy.state === SandboxState.RUNNING ? { kind: 'pause', row } : undefined;
  return copy.state === SandboxState.PAUSED ? { kind: 'resume', row } : undefined;
}

function isOver(state: sandbox.SandboxState): boolean {
  return state === SandboxState.STOPPED || state === SandboxState.FAILED;
}

function fence(copy: sandbox.SandboxObservation, placedHere: boolean): Step {
  return { kind: 'fence', id: copy.sandboxId as SandboxId, generation: Number(copy.generation), placedHere };
}
