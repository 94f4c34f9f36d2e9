import type { SandboxId } from '@drover/foundation';
import type { StepFailure, StepPlace, UntrustedReason } from '../events/index.ts';

/** The present state of a sandbox's session, identity and init (I-35). Times are milliseconds since the epoch. */
export interface SandboxView {
  readonly sandboxId: SandboxId;
  readonly session: SessionView;
  readonly identity: IdentityView;
  readonly init: InitView;
  /** The latest trust checks of each source (`sandbox explain`). */
  readonly checks: readonly TrustCheck[];
}

export interface SessionView {
  readonly state: 'none' | 'connecting' | 'connected' | 'broken' | 'failed';
  readonly since: number;
  readonly attempts: number;
  readonly lastError: string;
  /** The last peer that completed a handshake; `thumbprint` is that of its present certificate, after a renewal too (I-6). */
  readonly peerCommonName: string;
  readonly thumbprint: string;
  readonly address: string;
}

export interface IdentityView {
  /** The start whose AgentRegistered event is stored (I-34); absent: none. */
  readonly registeredStart?: number;
  readonly verdict: 'unknown' | 'trusted' | 'untrusted' | 'revoked';
  readonly reason: UntrustedReason | '';
  readonly message: string;
  readonly since: number;
}

export interface InitView {
  readonly state: 'none' | 'running' | 'completed' | 'failed';
  readonly since: number;
  /** The number of the start that the plan belongs to. */
  readonly startCount: number;
  /** The current or the failed step. */
  readonly place: StepPlace | undefined;
  readonly failure: StepFailure | undefined;
}

export type TrustCheckName = 'chain' | 'validity' | 'eku' | 'cn' | 'san' | 'thumbprint' | 'registry' | 'host' | 'peer-address';

/** One trust check and its result. */
export interface TrustCheck {
  readonly check: TrustCheckName;
  readonly verdict: 'pass' | 'fail' | 'unknown';
  /** The actual and the expected value, a sentence. */
  readonly evidence: string;
  readonly at: number;
  /** Made at a dial, at Register, or for the present request. */
  readonly source: 'session' | 'register' | 'now';
}

/** The views of all sandboxes. They are stored, so they survive a restart of the control plane. */
export interface Worldview {
  /** The view of a sandbox; without any event, every part is `none` or `unknown`. */
  get(id: SandboxId): Promise<SandboxView>;
  /** The views in the order of `ids`. */
  many(ids: readonly SandboxId[]): Promise<ReadonlyMap<SandboxId, SandboxView>>;
  /** Replaces the earlier checks of the same sources. Never throws: a failed write is logged. */
  record(id: SandboxId, checks: readonly TrustCheck[]): void;
}
