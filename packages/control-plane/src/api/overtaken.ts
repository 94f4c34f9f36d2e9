import { DroverError } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import type { SandboxRow } from '../store/store.ts';
import { labelOf } from './label.ts';

const { RUNNING, PAUSED, STOPPED, FAILED, STOPPING, DELETING, DELETED } = sandbox.SandboxState;

type Desired = Pick<SandboxRow, 'desired' | 'generation' | 'startGeneration'>;

/** States that a run ends in, or on its way there. */
const ends: ReadonlySet<sandbox.SandboxState> = new Set([STOPPING, STOPPED, FAILED, DELETING, DELETED]);

/**
 * Why a caller that waits for one of `states` waits in vain: somebody has asked for something else since. Undefined while nobody has.
 * A wait that began under the present desired state goes on, since whoever asked for that may ask for more.
 * @param generation the desired state that the caller's wait began with
 */
export function overtaken(
  row: Desired & Pick<SandboxRow, 'project' | 'name'>,
  states: ReadonlySet<sandbox.SandboxState>,
  generation: number,
): DroverError | undefined {
  const happened = what(row, states, generation);
  if (happened === undefined) return undefined;
  return new DroverError('conflict', `sandbox ${labelOf(row)} was ${happened} while this command waited for it`, {
    hint: `\`drover events --subject ${labelOf(row)}\` shows what was asked for and when`,
  });
}

function what(
  { desired, generation: now, startGeneration }: Desired,
  states: ReadonlySet<sandbox.SandboxState>,
  generation: number,
): string | undefined {
  // The end that was waited for may have come and gone, or will not come: both are true of another run now.
  if (startGeneration > generation && [...states].every((state) => ends.has(state))) return 'started again';
  if (now <= generation) return undefined;
  switch (desired) {
    case 'running':
      return states.has(PAUSED) && !states.has(RUNNING) ? 'resumed' : undefined;
    case 'paused':
      return states.has(RUNNING) && !states.has(PAUSED) ? 'paused' : undefined;
    case 'stopped':
      return [...states].every((state) => !ends.has(state)) ? 'stopped' : undefined;
    case 'deleted':
      return states.has(DELETING) || states.has(DELETED) ? undefined : 'removed';
    default:
      return desired satisfies never;
  }
}
