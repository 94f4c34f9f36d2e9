import { hostStates, type api } from '@drover/protocol';

/** A sandbox as people and commands refer to it: `name`, or `project/name`. */
export function sandboxLabel(sandbox: api.Sandbox): string {
  return sandbox.project === '' ? sandbox.name : `${sandbox.project}/${sandbox.name}`;
}

/** A host's state as people write it: `ready`, `down`, …; `unknown` for a state that this version does not know. */
export function hostStateName(state: api.HostState): string {
  return hostStates.name(state) ?? 'unknown';
}
