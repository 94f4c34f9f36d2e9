import type { HostId, SandboxId } from '@drover/foundation';
import type { Identity } from '../model/index.ts';
import type { TrustCheck } from '../worldview/index.ts';

/** The names that a call to Register claims, and what this side observed of the call: all other fields (I-14). */
export interface RegisterClaim {
  readonly sandboxId: SandboxId;
  readonly thumbprint: string;
  readonly commonName: string;
  readonly project: string;
  readonly name: string;
  /** SHA-256 of the bootstrap token, hex. */
  readonly tokenHash: string;
  /** The host whose link carried the connection, and the origin that this host reports. */
  readonly hostId: HostId;
  readonly peerAddress: string;
}

/** The failed check, for the log and for `explain`. It is never sent to the peer (I-16). */
export type RegisterRefusal =
  | 'malformed-name'
  | 'cn-mismatch'
  | 'unknown-sandbox'
  | 'record-mismatch'
  | 'host-mismatch'
  | 'peer-address-mismatch'
  | 'token'
  | 'replay'
  | 'revoked'
  | 'collision';

/** `checks` are all checks that were made, for `explain`. */
export type RegisterOutcome =
  /** `again`: an existing row with this thumbprint; nothing was written but the new access token. */
  | {
      readonly kind: 'welcome';
      readonly again: boolean;
      readonly identity: Identity;
      readonly accessToken: string;
      readonly checks: readonly TrustCheck[];
    }
  | { readonly kind: 'refused'; readonly why: RegisterRefusal; readonly checks: readonly TrustCheck[] }
  | { readonly kind: 'storage-failed'; readonly error: unknown };

/** Every failure has the same result, `unknown` (I-9). */
export type Lookup = { readonly kind: 'found'; readonly identity: Identity } | { readonly kind: 'unknown' };

/** The record of a sandbox when a session begins (I-27). */
export interface Standing {
  readonly identity: Identity | undefined;
  /** The thumbprint belongs to a certificate issued for a start that has not registered yet: the session requests Register. */
  readonly mayRegister: boolean;
  readonly revoked: boolean;
}
