import { DroverError } from '@drover/foundation';
import { containmentActions, labelOf, type ContainmentAction, type ContainmentRecord, type SandboxRow } from './sandbox.ts';

type Contained = Pick<SandboxRow, 'containment'>;

const effects: Readonly<Record<ContainmentAction, string>> = {
  'cut-network': 'its network is cut',
  pause: 'it is paused',
  kill: 'it is killed',
  revoke: 'its identity is revoked',
};

/** The active containments, in the order in which they are applied. */
export function containmentsOf(row: Contained): readonly ContainmentAction[] {
  return containmentActions.filter((action) => row.containment[action] !== undefined);
}

/** Whether a containment keeps the sandbox from running until its release. */
export function mayNotRun({ containment }: Contained): boolean {
  return containment.pause !== undefined || containment.kill !== undefined;
}

/** `it is killed, by admin at 2026-01-01T00:00:00.000Z: phones home`. */
export function containmentText(action: ContainmentAction, { by, at, reason }: ContainmentRecord): string {
  const who = by === '' ? '' : ` by ${by}`;
  return `${effects[action]},${who} at ${new Date(at).toISOString()}${reason === '' ? '' : `: ${reason}`}`;
}

/** The hint for a sandbox that has ended: start it or, if a containment refuses a start, release it. */
export function restartHint(row: Pick<SandboxRow, 'name' | 'project' | 'containment'>): string {
  const label = labelOf(row);
  return mayNotRun(row)
    ? `it is contained: \`drover sandbox release ${label}\` lifts that and starts it again`
    : `\`drover sandbox start ${label}\` starts it again`;
}

/**
 * I-4: only a release undoes a containment. Refuses any other request that would let the sandbox run again.
 * @throws {DroverError} failed-precondition while a pause or a kill contains it
 */
export function refuseContained(row: Pick<SandboxRow, 'name' | 'project' | 'containment'>): void {
  const active = (['pause', 'kill'] as const).flatMap((action) => {
    const record = row.containment[action];
    return record === undefined ? [] : [containmentText(action, record)];
  });
  if (active.length === 0) return;
  const label = labelOf(row);
  throw new DroverError('failed-precondition', `sandbox ${label} is contained: ${active.join('; ')}`, {
    hint: `\`drover sandbox release ${label}\` lifts that`,
  });
}
