import type { HostId } from '@drover/foundation';
import type { InitView } from '../../worldview/index.ts';

/** The state that a sandbox's sessions carry over to the next one. Starts are numbered from 1; 0: none. */
export interface StartState {
  /** The start that was dialled last, and the host that counts the starts of its copy. */
  readonly start: number;
  readonly hostId: HostId | undefined;
  /** The start whose init plan was completed. */
  readonly completedStart: number;
  /** The start whose init was sent AgentReady, whether or not it responded. */
  readonly readyRequested: number;
  /** Consecutive sessions that broke within the plan, before the command can have begun. */
  readonly interruptedPlans: number;
  /** Consecutive connections that could not be closed (I-25). */
  readonly closeFailures: number;
}

export type StartEvent =
  | { readonly kind: 'attempted'; readonly start: number; readonly hostId: HostId }
  | { readonly kind: 'ready-requested' | 'completed' | 'interrupted'; readonly start: number }
  /** After a restart of the control plane: the stored state of the plan. */
  | { readonly kind: 'recalled'; readonly start: number; readonly init: InitView }
  /** The plan has ended, or was declared failed. */
  | { readonly kind: 'settled' }
  | { readonly kind: 'closed'; readonly ok: boolean };

export const initialState: StartState = {
  start: 0,
  hostId: undefined,
  completedStart: 0,
  readyRequested: 0,
  interruptedPlans: 0,
  closeFailures: 0,
};

/** Whether the command of this start may have begun. From then on, a failed plan does not fail the start. */
export function mayHaveBegun({ completedStart, readyRequested }: StartState, start: number): boolean {
  return completedStart === start || readyRequested === start;
}

export function advance(state: StartState, event: StartEvent): StartState {
  switch (event.kind) {
    case 'attempted': {
      const { start, hostId } = event;
      if (state.hostId !== hostId) return { ...initialState, closeFailures: state.closeFailures, start, hostId };
      return state.start === start ? state : { ...state, start, interruptedPlans: 0 };
    }
    case 'ready-requested':
      return { ...state, readyRequested: event.start };
    case 'completed':
      return { ...state, completedStart: event.start };
    case 'interrupted':
      return mayHaveBegun(state, event.start) ? state : { ...state, interruptedPlans: state.interruptedPlans + 1 };
    case 'recalled': {
      const { start, init } = event;
      if (init.startCount !== start) return state;
      const unanswered = init.state === 'running' || init.failure?.reason === 'transport-error';
      return {
        ...state,
        ...(init.state === 'completed' && { completedStart: start }),
        ...(unanswered && init.place?.step === 'agent-ready' && { readyRequested: start }),
      };
    }
    case 'settled':
      return { ...state, interruptedPlans: 0 };
    case 'closed':
      return { ...state, closeFailures: event.ok ? 0 : state.closeFailures + 1 };
    default:
      return event satisfies never;
  }
}

/** The state of one sandbox. Its dials and sessions read it, and change it only by reporting events. */
export class StartHistory {
  #state = initialState;

  get state(): StartState {
    return this.#state;
  }

  report(event: StartEvent): void {
    this.#state = advance(this.#state, event);
  }
}
