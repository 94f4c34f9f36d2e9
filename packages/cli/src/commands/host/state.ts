import { api } from '@drover/protocol';

const names = new Map<api.HostState, string>(Object.entries(api.HostState).map(([name, value]) => [value, name.toLowerCase()]));

/** A host's state as people write it: `ready`, `down`, …; `unknown` for one that this version does not know. */
export function hostStateName(state: api.HostState): string {
  return names.get(state) ?? 'unknown';
}
