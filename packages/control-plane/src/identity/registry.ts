import type { HostId, SandboxId } from '@drover/foundation';
import type { EvictionCause, Identity } from '../model/index.ts';
import type { TrustCheck } from '../worldview/index.ts';

/** What a call to Register claims and shows (I-14); everything but the names was seen by this side. */
export interface RegisterClaim {
  readonly sandboxId: SandboxId;
  readonly thumbprint: string;
  readonly commonName: string;
  readonly project: string;
  readonly name: string;
  /** SHA-256 of the bootstrap token, hex. */
  readonly tokenHash: string;
  /** Whose link carried the connection, and what that host saw of its origin. */
  readonly hostId: HostId;
  readonly peerAddress: string;
}

/** The check that refused; for the log and for `explain`, never for the wire (I-16). */
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

/** `checks` are all that were made, for `explain`. */
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

/** `unknown` is the one sentinel for whatever failed (I-9). */
export type Lookup = { readonly kind: 'found'; readonly identity: Identity } | { readonly kind: 'unknown' };

/** What is on record for a sandbox when a session greets it (I-27). */
export interface Standing {
  readonly identity: Identity | undefined;
  /** The thumbprint belongs to a certificate issued for a start that has not registered yet: Register is to be driven. */
  readonly mayRegister: boolean;
  readonly revoked: boolean;
}

/**
 * Who is who: thumbprints of sandboxes that registered (I-7 to I-12). Only the control plane writes.
 * Nothing that arrives from outside makes a method throw; a zero thumbprint or an empty sandbox id is a programming error and does (I-8).
 */
export interface Registry {
  /**
   * A certificate was issued for a start of the sandbox. Gives the single-use bootstrap token that registers it (I-13). A request that was
   * repeated after a lost answer gives further certificates of the same start; one of them registers.
   * @throws {DroverError} sandbox-not-found, and what the store throws
   */
  issued(certificate: {
    readonly sandboxId: SandboxId;
    readonly thumbprint: string;
    readonly notAfter: number;
    /** The signing request that it answers, DER. Absent: it is the only certificate of its start. */
    readonly csrDer?: Uint8Array;
  }): Promise<string>;
  register(claim: RegisterClaim): Promise<RegisterOutcome>;
  /** Compares the CN with the stored one in constant time (I-9). */
  lookup(thumbprint: string, commonName: string): Promise<Lookup>;
  /** No CN gate: a mismatch is the caller's typed outcome. */
  lookupBySandbox(id: SandboxId): Promise<Lookup>;
  /** The rows of these sandboxes, of those that have one. @throws {DroverError} what the store throws */
  findAll(ids: readonly SandboxId[]): Promise<ReadonlyMap<SandboxId, Identity>>;
  /** @throws {DroverError} what the store throws: the dialer tells a lookup that fails from one that finds nothing */
  standing(id: SandboxId, thumbprint: string): Promise<Standing>;
  /**
   * A renewed certificate was made for a registered sandbox; it counts from now on, and alone once it was seen. Said again, it changes
   * nothing.
   * @param shown the certificate that it takes the place of, which the sandbox shows until then
   * @throws {DroverError} conflict when the sandbox is not registered (any more), and what the store throws
   */
  renewed(id: SandboxId, thumbprint: string, shown: string): Promise<void>;
  /** An authenticated call, or frames on the session (I-10). Batched: never waits, never throws. */
  seen(id: SandboxId, thumbprint: string): void;
  /** A copy, sorted by project and name. */
  snapshot(): Promise<readonly Identity[]>;
  /** Removes the row, and its tokens; publishes IdentityEvicted. False when there was none. */
  evict(id: SandboxId, why: EvictionCause): Promise<boolean>;
  /** Contained (I-4): evicts, and refuses every Register until it is lifted. */
  revoke(id: SandboxId): Promise<void>;
  /** Lifts a revocation; the sandbox may register again with the certificate that it has. */
  reinstate(id: SandboxId): Promise<boolean>;
  /** A token for a sandbox that was reinstated and holds a certificate of this control plane; undefined when it may not have one. */
  secondToken(id: SandboxId, thumbprint: string): Promise<string | undefined>;
  /** Evicts every row whose sandbox exists no more (I-12); publishes ReapDegraded when the listing fails three times. Gives how many. */
  reap(): Promise<number>;
}
