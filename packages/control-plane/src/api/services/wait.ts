import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError, type SandboxId } from '@drover/foundation';
import { sandbox, sandboxStates, type api, type SandboxStateName } from '@drover/protocol';
import { currentStart, labelOf, sandboxState, type SandboxRow } from '../../model/index.ts';
import { describeOne } from '../convert/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { endedError } from '../reach/index.ts';

const { RUNNING, PAUSED, STOPPED, FAILED, STOPPING, DELETING, DELETED, UNSPECIFIED } = sandbox.SandboxState;

type States = ReadonlySet<sandbox.SandboxState>;
type Desired = Pick<SandboxRow, 'desired' | 'generation' | 'startGeneration'>;

/** The longest time of a timer, ms (setTimeout takes 31 bits). */
const maxTimerMs = 2n ** 31n - 1n;

/** Waits until a sandbox is in one of several states. */
export function waitMethod(context: ApiContext): Pick<ServiceImpl<typeof api.SandboxService>, 'waitSandbox'> {
  const { store, sessions, feed } = context;
  return {
    async waitSandbox(request, { signal }) {
      const states = new Set(request.states);
      if (states.size === 0 || states.has(UNSPECIFIED)) {
        throw new DroverError('invalid-argument', 'the request names no state to wait for', {
          hint: 'for instance running, or stopped and failed',
        });
      }
      const { id, generation } = await store.sandboxes.find(request.sandbox);
      const { timeoutMs } = request;
      const timeout = timeoutMs > 0n ? AbortSignal.timeout(Number(timeoutMs > maxTimerMs ? maxTimerMs : timeoutMs)) : undefined;
      const either = timeout === undefined ? signal : AbortSignal.any([signal, timeout]);
      const look = async (): Promise<SandboxRow | undefined> =>
        await reached(context, id, states, Number(request.generation) || generation);
      try {
        return await describeOne(store, sessions, await feed.until(id, look, either));
      } catch (error) {
        if (timeout === undefined || signal.aborted || error !== timeout.reason) throw error;
        const row = await store.sandboxes.get(id);
        const { state, message } = row === undefined ? { state: 'deleted', message: '' } : sandboxState(row);
        throw new DroverError('timed-out', `the sandbox is still ${state} after ${timeoutMs} ms`, {
          hint: message || 'wait longer, or look at `drover events`',
        });
      }
    },
  };
}

/** The row if the sandbox is in one of `states`; undefined if it may still reach one. @throws {DroverError} why it cannot */
async function reached({ store }: ApiContext, id: SandboxId, states: States, generation: number): Promise<SandboxRow | undefined> {
  const row = await store.sandboxes.get(id);
  if (row === undefined) throw new DroverError('sandbox-not-found', `sandbox ${id} no longer exists`);
  const { state } = sandboxState(row);
  if (states.has(sandboxStates.value(state)) && (state !== 'running' || (await hasBegun(store, row)))) return row;
  const error = unreachable(row, states) ?? overtaken(row, states, generation);
  if (error !== undefined) throw error;
  return undefined;
}

/** A sandbox counts as running when its command has begun: the init plan of this start is completed (I-30). */
async function hasBegun({ views }: ApiContext['store'], row: SandboxRow): Promise<boolean> {
  const init = (await views.get([row.id])).get(row.id)?.init;
  return init?.state === 'completed' && init.startCount === currentStart(row);
}

/** The error for a sandbox that reaches none of `states` without an action of a person; undefined for any other. */
function unreachable(row: SandboxRow, states: States): DroverError | undefined {
  const { state } = sandboxState(row);
  const among = (...names: readonly SandboxStateName[]): boolean => names.some((name) => states.has(sandboxStates.value(name)));
  switch (state) {
    case 'deleted':
      return new DroverError('sandbox-not-found', `sandbox ${labelOf(row)} was deleted`);
    case 'deleting':
      return among('deleted') ? undefined : new DroverError('failed-precondition', `sandbox ${labelOf(row)} is being deleted`);
    case 'failed':
    case 'stopped':
      // Only a deletion may follow without a new start.
      return among('deleting', 'deleted') ? undefined : endedError(row);
    default:
      return undefined;
  }
}

/** The states of an end, and those on the way to one. */
const ends: States = new Set([STOPPING, STOPPED, FAILED, DELETING, DELETED]);

/**
 * The error for a caller that waits for one of `states` when a later request prevents them; undefined when none does. A wait that began
 * under the present desired state goes on: another request may still bring the sandbox to one of them.
 * @param generation the desired state with which the caller's wait began
 */
export function overtaken(
  row: Desired & Pick<SandboxRow, 'project' | 'name'>,
  states: States,
  generation: number,
): DroverError | undefined {
  const happened = laterRequest(row, states, generation);
  if (happened === undefined) return undefined;
  return new DroverError('conflict', `sandbox ${labelOf(row)} was ${happened} while this command waited for it`, {
    hint: `\`drover events --subject ${labelOf(row)}\` shows what was asked for and when`,
  });
}

function laterRequest({ desired, generation: now, startGeneration }: Desired, states: States, generation: number): string | undefined {
  // The state is that of a later run: the end of the earlier one is no longer visible.
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
