import { sandbox } from '@drover/protocol';
import type { Observation } from '../hub/index.ts';
import { mayNotRun, runIsOver, type SandboxRow } from '../model/index.ts';
import type { CopyStep, Step } from './step.ts';

const { SandboxState } = sandbox;

/**
 * The steps that bring a host from its observed to its desired state: at most one for each sandbox, and one for its network.
 * @param rows all sandboxes that are placed on the host and not deleted
 * @param observed all copies that the host holds
 */
export function planHost(rows: readonly SandboxRow[], observed: readonly Observation[]): readonly Step[] {
  const copies = new Map(observed.map((copy) => [copy.sandboxId, copy]));
  const here = new Set<string>(rows.map((row) => row.id));
  return [
    ...rows.flatMap((row) => [planNetwork(row, copies.get(row.id)), planSandbox(row, copies.get(row.id))]),
    ...observed.filter((copy) => !here.has(copy.sandboxId)).map((copy) => fence(copy, false)),
  ].filter((step) => step !== undefined);
}

/** The next step of one sandbox, except for its network. @param row undefined: the sandbox is not placed here */
export function planSandbox(row: SandboxRow | undefined, copy: Observation | undefined): Step | undefined {
  if (row === undefined) return copy === undefined ? undefined : fence(copy, false);
  if (copy === undefined) return planAbsent(row);
  // L-26: a copy of an earlier placement lacks the files of the later ones.
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
 * The next step of a sandbox's network (I-4). It runs concurrently with any other step: during a creation, before a pause, and during the grace
 * of a stop. A create or a start carries the desired state of the network, so it applies from the first packet.
 */
export function planNetwork(row: SandboxRow | undefined, copy: Observation | undefined): CopyStep | undefined {
  if (row === undefined || copy === undefined || row.desired === 'deleted') return undefined;
  const belongs = Number(copy.generation) >= row.placedGeneration;
  const isAsDesired = row.networkCut === copy.networkCut && (row.revokedAt !== undefined) === copy.registrationClosed;
  return belongs && !isOver(copy.state) && !isAsDesired ? { kind: 'cut', row } : undefined;
}

/** The host holds no copy. */
function planAbsent(row: SandboxRow): Step | undefined {
  if (row.desired === 'deleted') return { kind: 'absent', row };
  const everRan = row.observed === 'running' || row.observed === 'paused' || row.observed === 'stopping' || row.observed === 'stopped';
  // A failed creation left no files, so creating the sandbox again loses nothing.
  const wantsCopy = row.desired !== 'stopped' && !runIsOver(row) && !everRan;
  if (!wantsCopy) return { kind: 'absent', row };
  // I-4: a sandbox that is contained before it runs is not created.
  return row.pendingReason === '' && !mayNotRun(row) ? { kind: 'create', row } : undefined;
}

/** The next step of a sandbox that is to run or to be paused, with a copy on the host. */
function planAlive(row: SandboxRow, copy: Observation): Step | undefined {
  if (isOver(copy.state)) {
    // A run that has ended is repeated only for a later start request (`drover run` ends with its command).
    if (runIsOver(row) || Number(copy.generation) >= row.startGeneration) return undefined;
    return row.pendingReason === '' && !mayNotRun(row) ? { kind: 'start', row } : undefined;
  }
  // The control plane gave up the start, for example after a failed init plan: the copy must stop.
  if (runIsOver(row) && row.observed === 'failed') return { kind: 'stop', row };
  if (copy.state === SandboxState.PREPARING) {
    // An attempt failed and may succeed later, or began before this stream: the host joins the repeated request to it (L-19).
    return runIsOver(row) || mayNotRun(row) ? undefined : { kind: copy.startCount === 0n ? 'create' : 'start', row };
  }
  if (row.desired === 'paused') return copy.state === SandboxState.RUNNING ? { kind: 'pause', row } : undefined;
  return copy.state === SandboxState.PAUSED ? { kind: 'resume', row } : undefined;
}

function isOver(state: sandbox.SandboxState): boolean {
  return state === SandboxState.STOPPED || state === SandboxState.FAILED;
}

function fence(copy: Observation, placedHere: boolean): Step {
  return { kind: 'fence', id: copy.sandboxId, generation: Number(copy.generation), placedHere };
}
