import type { SandboxId } from '@drover/foundation';
import type { InitClient } from './connection/index.ts';

export interface SessionStatus {
  readonly state: 'none' | 'connecting' | 'connected' | 'broken';
  /** Milliseconds since the epoch. */
  readonly since: number;
  readonly attempts: number;
  readonly lastError: string;
}

export const noSession: SessionStatus = { state: 'none', since: 0, attempts: 0, lastError: '' };

/** One session per running sandbox (spec 2): dialled through a tunnel, kept open, redialled when it breaks. */
export interface Sessions {
  /** Returns immediately (I-21). Has no effect while a dial is in flight or its session is open (I-22). */
  dial(sandboxId: SandboxId): void;
  /** An intended end: stop, destroy, shutdown (I-24). */
  close(sandboxId: SandboxId): void;
  /** Ends the session without an event, and redials if the sandbox must have one: after a revocation, an eviction or a reinstatement. */
  redial(sandboxId: SandboxId): void;
  status(sandboxId: SandboxId): SessionStatus;
  /**
   * The client of init, once the session is open. Dials if necessary.
   * @throws {DroverError} session-unavailable; sandbox-not-running with the reason of its end; cancelled
   */
  client(sandboxId: SandboxId, signal: AbortSignal): Promise<InitClient>;
  closeAll(): Promise<void>;
}
