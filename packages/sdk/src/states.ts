import { sandboxStates, type sandbox, type SandboxStateName } from '@drover/protocol';

export type { SandboxStateName } from '@drover/protocol';

/** The name of a state; `unknown` for a state of a later version. */
export function sandboxStateName(state: sandbox.SandboxState): SandboxStateName | 'unknown' {
  return sandboxStates.name(state) ?? 'unknown';
}

export function sandboxStateValue(name: SandboxStateName): sandbox.SandboxState {
  return sandboxStates.value(name);
}
