import type { SandboxId } from '@drover/foundation';
import type { StepFailure, StepPlace, UntrustedReason } from '../events/index.ts';

/** What is true now of one sandbox's session, identity and init (I-35). Times are milliseconds since the epoch. */
export interface SandboxView {
  readonly sandboxId: SandboxId;
  readonly session: SessionView;
  readonly identity: IdentityView;
  readonly init: InitView;
  /** Every check of trust that was made last, by its source (`sandbox explain`). */
  readonly checks: readonly TrustCheck[];
}

export interface SessionView {
  readonly state: 'none' | 'connecting' | 'connected' | 'broken' | 'failed';
  readonly since: number;
  readonly attempts: number;
  readonly lastError: string;
  /** Of the last peer that answered; the thumbprint is that of the certificate that it has now (I-6). */
  readonly peerCommonName: string;
  readonly thumbprint: string;
  readonly address: string;
}

export interface IdentityView {
  /** The start whose registration, ok or not, has its event (I-34); absent: none. */
  readonly registeredStart?: number;
  readonly verdict: 'unknown' | 'trusted' | 'untrusted' | 'revoked';
  readonly reason: UntrustedReason | '';
  readonly message: string;
  readonly since: number;
}

export interface InitView {
  readonly state: 'none' | 'running' | 'completed' | 'failed';
  readonly since: number;
  /** The start of the sandbox that this is about. */
  readonly startCount: number;
  /** Where it is, or where it failed. */
  readonly place: StepPlace | undefined;
  readonly failure: StepFailure | undefined;
}

export type TrustCheckName = 'chain' | 'validity' | 'eku' | 'cn' | 'san' | 'thumbprint' | 'registry' | 'host' | 'peer-address';

/** One check of trust: what was looked at, and what came of it. */
export interface TrustCheck {
  readonly check: TrustCheckName;
  readonly verdict: 'pass' | 'fail' | 'unknown';
  /** What was seen, and what was expected; a sentence for a person. */
  readonly evidence: string;
  readonly at: number;
  /** Made at a dial, at Register, or for whoever asks now. */
  readonly source: 'session' | 'register' | 'now';
}

/** Answers what is true now; kept in the store, so that a restart of the control plane loses nothing of it. */
export interface Worldview {
  /** The view of a sandbox that nothing is known of: every part `none` or `unknown`. */
  get(id: SandboxId): Promise<SandboxView>;
  /** In the order that is asked for. */
  many(ids: readonly SandboxId[]): Promise<ReadonlyMap<SandboxId, SandboxView>>;
  /** Replaces what this source said before. Never throws: what cannot be stored is logged. */
  record(id: SandboxId, checks: readonly TrustCheck[]): void;
}
