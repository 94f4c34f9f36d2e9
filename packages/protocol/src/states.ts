import { HostState } from './generated/drover/api/v1/api_pb.ts';
import { DesiredState, SandboxState } from './generated/drover/sandbox/v1/sandbox_pb.ts';

/** A wire enum and the names of its values, for people and for the store; UNSPECIFIED has no name. */
export interface StateWords<Name extends string, Value extends number> {
  readonly names: readonly Name[];
  value(name: Name): Value;
  /** Undefined for UNSPECIFIED and for a value of a later version. */
  name(value: number): Name | undefined;
}

function words<Name extends string, Value extends number>(values: Readonly<Record<Name, Value>>): StateWords<Name, Value> {
  const names = Object.keys(values) as Name[];
  const byValue = new Map<number, Name>(names.map((name) => [values[name], name]));
  return { names, value: (name) => values[name], name: (value) => byValue.get(value) };
}

/** States of a sandbox (L-25). */
export const sandboxStates = words({
  pending: SandboxState.PENDING,
  scheduled: SandboxState.SCHEDULED,
  preparing: SandboxState.PREPARING,
  starting: SandboxState.STARTING,
  running: SandboxState.RUNNING,
  paused: SandboxState.PAUSED,
  stopping: SandboxState.STOPPING,
  stopped: SandboxState.STOPPED,
  failed: SandboxState.FAILED,
  lost: SandboxState.LOST,
  deleting: SandboxState.DELETING,
  deleted: SandboxState.DELETED,
});
export type SandboxStateName = (typeof sandboxStates.names)[number];

/** Desired states of a sandbox. */
export const desiredStates = words({
  running: DesiredState.RUNNING,
  stopped: DesiredState.STOPPED,
  paused: DesiredState.PAUSED,
  deleted: DesiredState.DELETED,
});
export type DesiredStateName = (typeof desiredStates.names)[number];

/** States of a host (L-25). */
export const hostStates = words({
  joining: HostState.JOINING,
  ready: HostState.READY,
  cordoned: HostState.CORDONED,
  draining: HostState.DRAINING,
  down: HostState.DOWN,
  removed: HostState.REMOVED,
});
export type HostStateName = (typeof hostStates.names)[number];
