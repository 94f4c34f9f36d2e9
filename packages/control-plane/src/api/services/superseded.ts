import { DroverError } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import { labelOf, type SandboxRow } from '../../model/index.ts';

const { RUNNING, PAUSED, STOPPED, FAILED, STOPPING, DELETING, DELETED } = sandbox.SandboxState;

type Desired = Pick<SandboxRow, 'desired' | 'generation' | 'startGeneration'>;

/** States that a run ends in, or on its way there. */
const ends: ReadonlySet<sandbox.SandboxState> = new Set([STOPPING, STOPPED, FAILED, DELETING, DELETED]);

/**
 * The error for a caller that waits for one of `states` when a later request keeps the sandbox from them; undefined when none does.
 * A wait that began under the present desired state goes on: another request may still bring the sandbox to one of them.
 * @param generation the desired state that the caller's wait began with
 */
export function overtaken(
  row: Desired & Pick<SandboxRow, 'project' | 'name'>,
  states: ReadonlySet<sandbox.SandboxState>,
  generation: number,
): DroverError | undefined {
  const happened = laterRequest(row, states, generation);
  if (happened === undefined) return undefined;
  return new DroverError('conflict', `sandbox ${labelOf(row)} was ${happened} while this command waited for it`, {
    hint: `\`drover events --subject ${labelOf(row)}\` shows what was asked for and when`,
  });
}

function laterRequest(
  { desired, generation: now, startGeneration }: Desired,
  states: ReadonlySet<sandbox.SandboxState>,
  generation: number,
): string | undefined {
  // Whether the run whose end was waited for has ended can no longer be seen: the state is that of a later run.
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
