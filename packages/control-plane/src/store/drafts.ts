import type { HostId, Name, Project, SandboxId } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import type { Identity, Room, SandboxRow, SealedSecret, StopCause } from '../model/index.ts';

export interface DesiredOptions {
  /** The time between SIGTERM and SIGKILL of a stop. Milliseconds; 0: the host's default. */
  readonly graceMs?: number;
  /** Stops with the shortest grace (I-4). */
  readonly kill?: boolean;
  /** The cause of a stop or removal. Default: `asked` for a stop, `removed` for a removal. */
  readonly cause?: StopCause;
  /** The name of the caller's API token; empty: Drover itself. */
  readonly by?: string;
  /** A condition on the locked row; if it returns false, nothing changes. */
  readonly when?: (row: SandboxRow) => boolean;
}

export interface SandboxDraft {
  readonly id: SandboxId;
  readonly project: Project;
  readonly name: Name;
  readonly spec: sandbox.SandboxSpec;
  readonly labels: Readonly<Record<string, string>>;
  readonly request: Room;
  /** The sealed values of the spec's secrets; absent: none. */
  readonly secrets?: readonly SealedSecret[];
}

export interface SandboxFilter {
  readonly project?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly hostId?: HostId;
  readonly includeDeleted?: boolean;
  /** Rows after this position in the order of creation. The sandbox of the position need not exist any more. */
  readonly after?: { readonly createdAt: number; readonly id: SandboxId };
  readonly limit?: number;
}

/** A Register call that passed every check that needs no transaction. */
export interface Registration {
  readonly sandboxId: SandboxId;
  readonly thumbprint: string;
  readonly project: Project;
  readonly name: Name;
  readonly commonName: string;
  readonly tokenHash: string;
  readonly accessTokenHash: string;
}

export type RegistrationResult =
  | { readonly kind: 'welcome'; readonly again: boolean; readonly identity: Identity }
  | { readonly kind: 'refused'; readonly why: 'token' | 'replay' | 'revoked' | 'unknown-sandbox' | 'collision' };
