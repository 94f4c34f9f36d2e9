import type { HostId, Name, Project, SandboxId } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import type { Identity, Room, SandboxRow, SealedSecret, StopCause } from '../model/index.ts';

export interface DesiredOptions {
  /** Between SIGTERM and SIGKILL, of a stop. Milliseconds; 0 is the host's own. */
  readonly graceMs?: number;
  /** The stop has the shortest grace (I-4). */
  readonly kill?: boolean;
  /** Why it is to end, when it is; default: `asked`, or `removed` for a removal. */
  readonly cause?: StopCause;
  /** The name of the caller's API token; empty: no person. */
  readonly by?: string;
  /** A condition on the present row; false changes nothing. */
  readonly when?: (row: SandboxRow) => boolean;
}

export interface SandboxDraft {
  readonly id: SandboxId;
  readonly project: Project;
  readonly name: Name;
  readonly spec: sandbox.SandboxSpec;
  readonly labels: Readonly<Record<string, string>>;
  readonly request: Room;
  /** Sealed values of the spec's secrets; none: absent. */
  readonly secrets?: readonly SealedSecret[];
}

export interface SandboxFilter {
  readonly project?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly hostId?: HostId;
  readonly includeDeleted?: boolean;
  /** Rows after this place in the order of creation, whether or not its sandbox still exists. */
  readonly after?: { readonly createdAt: number; readonly id: SandboxId };
  readonly limit?: number;
}

/** Register, after all checks that need no transaction. */
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
