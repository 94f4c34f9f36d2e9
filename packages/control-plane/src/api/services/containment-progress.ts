import { api } from '@drover/protocol';
import {
  containmentActions,
  containmentsOf,
  hasEnded,
  runIsOver,
  sandboxState,
  type ContainmentAction,
  type HostRow,
  type SandboxRow,
} from '../../model/index.ts';

const fields = { 'cut-network': 'networkCut', pause: 'paused', kill: 'killed', revoke: 'revoked' } as const;

/** Those that a message names. */
export function actionsOf(containment: api.Containment | undefined): readonly ContainmentAction[] {
  return containmentActions.filter((action) => containment?.[fields[action]] === true);
}

/** How far an action, or its undoing, has come. `waits`: more may come of it soon. */
export interface Progress {
  readonly done: boolean;
  readonly message: string;
  readonly waits: boolean;
}

const done = (message: string): Progress => ({ done: true, message, waits: false });
const never = (message: string): Progress => ({ done: false, message, waits: false });

/** How far an action has come, from what is wanted and what its host last said. */
export function containProgress(action: ContainmentAction, row: SandboxRow, host: HostRow | undefined): Progress {
  if (row.desired !== 'deleted' && !containmentsOf(row).includes(action)) return never('it was undone meanwhile');
  switch (action) {
    case 'cut-network':
      if (row.observed === undefined || hasEnded(row.observed)) {
        return done('it does not run; its network is cut from the first packet on when it starts');
      }
      return row.observedNetworkCut ? done('its network is cut, but for the control plane’s own session') : atHost(host);
    case 'pause':
      if (row.observed === 'paused') return done('it is paused');
      if (row.observed === undefined) return done('it does not run yet, and does not until it is released');
      return runIsOver(row) ? never('it has ended, and cannot be paused') : atHost(host);
    case 'kill':
      if (hasEnded(row.observed) && (row.desired === 'stopped' || runIsOver(row))) return done('it is stopped');
      return row.hostId === undefined ? done('it runs nowhere') : atHost(host);
    case 'revoke':
      if (row.observed === undefined || hasEnded(row.observed) || row.observedRegistrationClosed) {
        return done('its identity is revoked, and it does not reach the registration port');
      }
      // Nothing registers as this sandbox from now on; the port is a second lock.
      return { ...atHost(host), message: `its identity is revoked; closing the registration port: ${atHost(host).message}` };
    default:
      return action satisfies never;
  }
}

/** How far the undoing of an action has come. */
export function releaseProgress(action: ContainmentAction, row: SandboxRow, host: HostRow | undefined): Progress {
  if (containmentsOf(row).includes(action)) return never('it was contained again meanwhile');
  const { state, message } = sandboxState(row);
  switch (action) {
    case 'cut-network':
      if (row.observed === undefined || hasEnded(row.observed)) return done('it does not run; its network is not cut when it starts');
      return row.observedNetworkCut ? atHost(host) : done('its network is as its policy says');
    case 'pause':
    case 'kill':
      if (state === 'running') return done('it runs');
      if (state === 'failed' || state === 'stopped') return never(message === '' ? `it is ${state}` : `it is ${state}: ${message}`);
      return state === 'pending' ? never(message) : atHost(host);
    case 'revoke':
      return row.observedRegistrationClosed && !hasEnded(row.observed) ? atHost(host) : done('it may register again');
    default:
      return action satisfies never;
  }
}

function atHost(host: HostRow | undefined): Progress {
  if (host?.connected === true) return { done: false, message: `its host ${host.name} has not done it yet; it stays wanted`, waits: true };
  return never(`its host${host === undefined ? '' : ` ${host.name}`} is not connected; it is done as soon as the host is back`);
}
