import type { SandboxId } from '@drover/foundation';

/** Why a peer is not trusted (I-27, I-34). */
export type UntrustedReason =
  | 'thumbprint-mismatch'
  | 'certificate-invalid'
  | 'cn-mismatch'
  | 'peer-address-mismatch'
  | 'register-failed'
  | 'lookup-failed'
  | 'revoked';

/** Why an init plan or a step failed (I-30). `identity-untrusted`: a plan is never sent to a peer that is not the sandbox. */
export type InitFailure =
  | 'exit-code'
  | 'timeout'
  | 'spawn-failed'
  | 'io-error'
  | 'transport-error'
  | 'protocol-error'
  | 'identity-untrusted';

/** A step of a plan: `index` counts from 1 to `count`. */
export interface StepPlace {
  readonly step: string;
  readonly index: number;
  readonly count: number;
}

/** The failure of a step, and so of its plan. */
export interface StepFailure {
  readonly reason: InitFailure;
  /** A sentence for a person. */
  readonly message: string;
  readonly exitCode?: number;
  /** The end of its stderr, at most 4 KiB, with `[N bytes truncated]` before it (I-30). */
  readonly stderr?: string;
}

/** The typed events of spec 2 (I-34), by kind and type, with the data of each. `attempts` counts within one dial. */
export interface SandboxEvents {
  readonly session: {
    readonly SessionConnecting: { readonly attempt: number };
    readonly SessionConnected: {
      readonly attempts: number;
      readonly peerCommonName: string;
      /** SHA-256 of the DER, lower-case hex; empty without a certificate. */
      readonly thumbprint: string;
      readonly address: string;
      readonly bootId: string;
    };
    /** The dial was given up. While the sandbox runs, a slow redial follows, which publishes nothing until it succeeds. */
    readonly SessionFailed: { readonly attempts: number; readonly reason: string; readonly message: string };
    readonly SessionBroken: { readonly message: string };
    /** The sandbox may have crashed the control plane, so it is dialled only after a delay. */
    readonly SessionDelayed: { readonly delayMs: number; readonly message: string };
    /** The peer exceeds the message rate of a session, and is read more slowly. At most once per connection. */
    readonly SessionThrottled: { readonly message: string };
    /** The peer accepted a renewed certificate for its key, which the handshake has proved (I-6). */
    readonly SessionRenewed: { readonly thumbprint: string };
  };
  readonly identity: {
    /** Once per start of the sandbox, whether the registration succeeded or not. */
    readonly AgentRegistered: { readonly ok: boolean; readonly thumbprint: string; readonly startCount: number; readonly message: string };
    readonly AgentUntrusted: { readonly reason: UntrustedReason; readonly message: string; readonly thumbprint: string };
    /** The peer's certificate has become the registered one. Not repeated while it stays so. */
    readonly AgentTrusted: { readonly thumbprint: string };
    readonly IdentityEvicted: { readonly thumbprint: string; readonly why: 'destroyed' | 'evicted' | 'revoked' | 'reaped' };
    /** Contained (I-4). `thumbprint`: the evicted identity; absent if the sandbox was not registered. */
    readonly IdentityRevoked: { readonly thumbprint?: string };
    readonly IdentityReinstated: { readonly thumbprint?: string };
    readonly IdentityRenewed: { readonly thumbprint: string };
    /** The subject is the replica. */
    readonly ReapDegraded: { readonly attempts: number; readonly message: string };
  };
  readonly init: {
    readonly InitStarted: { readonly count: number; readonly startCount: number };
    readonly InitStepStarted: StepPlace;
    readonly InitStepCompleted: StepPlace & { readonly durationMs: number; readonly exitCode: number };
    readonly InitStepFailed: StepPlace & StepFailure & { readonly durationMs: number };
    readonly InitCompleted: { readonly count: number; readonly durationMs: number; readonly startCount: number };
    readonly InitFailed: StepPlace & StepFailure & { readonly startCount: number };
  };
}

export type SandboxEventKind = keyof SandboxEvents;

/** One typed event as it is published: `{ kind: 'session', type: 'SessionConnecting', … }`. */
export type SandboxEvent = {
  [Kind in SandboxEventKind]: {
    [Type in keyof SandboxEvents[Kind] & string]: {
      readonly kind: Kind;
      readonly type: Type;
      readonly subject: SandboxId | string;
      readonly data: SandboxEvents[Kind][Type];
    };
  }[keyof SandboxEvents[Kind] & string];
}[SandboxEventKind];

/** Stores typed events. Never blocks and never throws (I-21, I-36): a failed write is logged. */
export interface Journal {
  /** Events of one publisher are stored in the order in which they were published. */
  publish(event: SandboxEvent): void;
  /** Resolves when every event published before is stored or dropped. */
  flush(): Promise<void>;
}
