import type { Name, Project, SandboxId } from '@drover/foundation';

/** One row of the registry (I-7). Times are milliseconds since the epoch. */
export interface Identity {
  /** SHA-256 of the certificate's DER, lower-case hex. */
  readonly thumbprint: string;
  /** The thumbprint of a renewed certificate that the sandbox has not presented yet. Until then, both thumbprints are valid (I-6). */
  readonly nextThumbprint: string | undefined;
  readonly sandboxId: SandboxId;
  readonly project: Project;
  readonly name: Name;
  readonly commonName: string;
  readonly registeredAt: number;
  readonly lastSeenAt: number;
}

/** Why the row of a sandbox was removed from the registry. */
export type EvictionCause = 'destroyed' | 'evicted' | 'revoked' | 'reaped';

/** `register`: a bootstrap token. `control`: the access token that Register returns. */
export type TokenScope = 'register' | 'control';

/** The sandbox that a bearer token authenticates on the sandbox-facing listener (I-18). */
export interface Bearer {
  readonly sandboxId: SandboxId;
  readonly scope: TokenScope;
}
