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
  /** The generation of the newest request to start it. A run that ended at this generation or later is over, and is not restarted. */
  readonly startGeneration: number;
  /** The generation at which its present placement began; a copy of an older one is stale, also on the same host (L-26). */
  readonly placedGeneration: number;
  /** What placement reserves for it. */
  readonly request: Room;
  readonly hostId: HostId | undefined;
  /** Why it is not placed or, when it is, why it waits for room on its host to start again; empty when it does neither. */
  readonly pendingReason: string;
  readonly pendingMessage: string;
  readonly observed: ObservedState | undefined;
  readonly observedGeneration: number;
  readonly observedSequence: number;
  readonly reason: string;
  readonly message: string;
  /** What a person can do about the message; empty for nothing. */
  readonly hint: string;
  readonly exitCode: number | undefined;
  /** The name of the signal that ended the main process; empty when none did. */
  readonly exitSignal: string;
  readonly outOfMemory: boolean;
  readonly address: string;
  readonly runtime: string;
  readonly imageDigest: string;
  readonly startCount: number;
  /** Since when its host's silence counts as loss (L-26). */
  readonly lostSince: number | undefined;
  readonly createdAt: number;
  readonly updatedAt: number;
  readonly startedAt: number | undefined;
  readonly finishedAt: number | undefined;
  readonly deletedAt: number | undefined;
  readonly stopGraceMs: number;
  /** Why it is to end, or was ended on request; undefined while it is to run. */
  readonly stopCause: StopCause | undefined;
  /** Who requested the stop; empty: no person. */
  readonly stopBy: string;
  /** Contained (I-4): its network is to be cut. */
  readonly networkCut: boolean;
  /** Whether its host reports that its network is cut. */
  readonly observedNetworkCut: boolean;
  /** Contained (I-4): no Register of it succeeds until this is lifted. */
  readonly revokedAt: number | undefined;
  /** Whether its host reports that the registration port is closed to it. */
  readonly observedRegistrationClosed: boolean;
  /** The containments that are in force (I-4). */
  readonly containment: Readonly<Partial<Record<ContainmentAction, ContainmentRecord>>>;
}

/** Why a sandbox was requested to end: by a person, at its time to live, by a drain of its host, a containment, or its removal. */
export const stopCauses = ['asked', 'ttl', 'drain', 'contained', 'removed'] as const;
export type StopCause = (typeof stopCauses)[number];

export interface ContainmentRecord {
  /** The name of the caller's token; empty for a containment of an earlier version. */
  readonly by: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
  readonly reason: string;
}

/** A secret as the store keeps it: unreadable without the key, which is not in the store. */
export interface SealedSecret {
  readonly name: string;
  readonly sealed: string;
}

/** The name by which people know a sandbox: `name`, or `project/name`. */
export function labelOf({ project, name }: { readonly project: string; readonly name: string }): string {
  return project === '' ? name : `${project}/${name}`;
}
