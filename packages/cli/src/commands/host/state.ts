import { hostStates, type api } from '@drover/protocol';

/** A host's state as people write it: `ready`, `down`, …; `unknown` for one that this version does not know. */
export function hostStateName(state: api.HostState): string {
  return hostStates.name(state) ?? 'unknown';
}
