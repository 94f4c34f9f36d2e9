import type { HostId, Name, Project, SandboxId } from '@drover/foundation';
import type { ContainmentAction, DesiredStateName, sandbox } from '@drover/protocol';
import type { Room } from './host.ts';

export { containmentActions, type ContainmentAction } from '@drover/protocol';

export type DesiredState = DesiredStateName;
export type ObservedState = 'preparing' | 'starting' | 'running' | 'paused' | 'stopping' | 'stopped' | 'failed';

/** Times are milliseconds since the epoch. */
export interface SandboxRow {
  readonly id: SandboxId;
  readonly project: Project;
  readonly name: Name;
  readonly spec: sandbox.SandboxSpec;
  readonly labels: Readonly<Record<string, string>>;
  readonly desired: DesiredState;
  /** Rises with every change of the desired state. */
  readonly generation: number;
  /** The generation of the newest start request. A run that ended at this generation or later is not restarted. */
  readonly startGeneration: number;
  /** The generation at which the present placement began. A copy of an older generation is stale, also on the same host (L-26). */
  readonly placedGeneration: number;
  /** The room that placement reserves. */
  readonly request: Room;
  readonly hostId: HostId | undefined;
  /** Why the sandbox waits for placement, or for room on its host to start again; empty if it does not wait. */
  readonly pendingReason: string;
  readonly pendingMessage: string;
  readonly observed: ObservedState | undefined;
  readonly observedGeneration: number;
  readonly observedSequence: number;
  readonly reason: string;
  readonly message: string;
  /** What the reader can do about the message; empty: nothing. */
  readonly hint: string;
  readonly exitCode: number | undefined;
  /** The name of the signal that ended the main process; empty when none did. */
  readonly exitSignal: string;
  readonly outOfMemory: boolean;
  readonly address: string;
  readonly runtime: string;
  readonly imageDigest: string;
  readonly startCount: number;
  /** When the sandbox became lost, because its host was down for too long (L-26). */
  readonly lostSince: number | undefined;
  readonly createdAt: number;
  readonly updatedAt: number;
  readonly startedAt: number | undefined;
  readonly finishedAt: number | undefined;
  readonly deletedAt: number | undefined;
  readonly stopGraceMs: number;
  /** The cause of the requested end; undefined while the sandbox is to run. */
  readonly stopCause: StopCause | undefined;
  /** The name of the token that requested the stop; empty: Drover itself. */
  readonly stopBy: string;
  /** Whether the network is to be cut (I-4). */
  readonly networkCut: boolean;
  /** Whether the host reports the network as cut. */
  readonly observedNetworkCut: boolean;
  /** When the identity was revoked (I-4): every Register is refused until it is reinstated. */
  readonly revokedAt: number | undefined;
  /** Whether the host reports the registration port as closed to the sandbox. */
  readonly observedRegistrationClosed: boolean;
  /** The active containments (I-4). */
  readonly containment: Readonly<Partial<Record<ContainmentAction, ContainmentRecord>>>;
}

/** The cause of a requested end: a caller, the time to live, a drain of the host, a containment, or a removal. */
export const stopCauses = ['asked', 'ttl', 'drain', 'contained', 'removed'] as const;
export type StopCause = (typeof stopCauses)[number];

export interface ContainmentRecord {
  /** The name of the caller's token; empty for a containment of an earlier version. */
  readonly by: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
  readonly reason: string;
}

/** A secret as it is stored: encrypted with a key that is not in the store. */
export interface SealedSecret {
  readonly name: string;
  readonly sealed: string;
}

/** The displayed name of a sandbox: `name` or `project/name`. */
export function labelOf({ project, name }: { readonly project: string; readonly name: string }): string {
  return project === '' ? name : `${project}/${name}`;
}
