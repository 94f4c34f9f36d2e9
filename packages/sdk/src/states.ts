import { sandbox } from '@drover/protocol';

/** A sandbox's state as people write it: `running`, `stopped`, … */
export type SandboxStateName =
  | 'pending'
  | 'scheduled'
  | 'preparing'
  | 'starting'
  | 'running'
  | 'paused'
  | 'stopping'
  | 'stopped'
  | 'failed'
  | 'lost'
  | 'deleting'
  | 'deleted';

const names: Readonly<Record<SandboxStateName, sandbox.SandboxState>> = {
  pending: sandbox.SandboxState.PENDING,
  scheduled: sandbox.SandboxState.SCHEDULED,
  preparing: sandbox.SandboxState.PREPARING,
  starting: sandbox.SandboxState.STARTING,
  running: sandbox.SandboxState.RUNNING,
  paused: sandbox.SandboxState.PAUSED,
  stopping: sandbox.SandboxState.STOPPING,
  stopped: sandbox.SandboxState.STOPPED,
  failed: sandbox.SandboxState.FAILED,
  lost: sandbox.SandboxState.LOST,
  deleting: sandbox.SandboxState.DELETING,
  deleted: sandbox.SandboxState.DELETED,
};
const values = new Map<sandbox.SandboxState, SandboxStateName>(
  Object.entries(names).map(([name, value]) => [value, name as SandboxStateName]),
);

/** The name of a state; `unknown` for one that this version does not know. */
export function sandboxStateName(state: sandbox.SandboxState): SandboxStateName | 'unknown' {
  return values.get(state) ?? 'unknown';
}

export function sandboxStateValue(name: SandboxStateName): sandbox.SandboxState {
  return names[name];
}
