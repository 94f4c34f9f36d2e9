import type { Client } from '@connectrpc/connect';
import type { SandboxId } from '@drover/foundation';
import type { init } from '@drover/protocol';

/** The control plane's client of one init, over its session connection. */
export type InitClient = Client<typeof init.InitService>;

export interface SessionStatus {
  readonly state: 'none' | 'connecting' | 'connected' | 'broken';
  /** Milliseconds since the epoch. */
  readonly since: number;
  readonly attempts: number;
  readonly lastError: string;
}

/** One session per running sandbox (spec 2): dialled through a tunnel, kept open, dialled again when it breaks. */
export interface Sessions {
  /** Returns at once (I-21); nothing while one is in flight or established (I-22). */
  dial(sandboxId: SandboxId): void;
  /** An intended end: stop, destroy, shutdown (I-24). */
  close(sandboxId: SandboxId): void;
  /** Ends the session, which publishes nothing, and dials anew when it is to have one: after its identity was revoked, evicted or reinstated. */
  redial(sandboxId: SandboxId): void;
  status(sandboxId: SandboxId): SessionStatus;
  /**
   * The init's client, as soon as the session stands; dials if nobody has.
   * @throws {DroverError} session-unavailable, sandbox-not-running with the sandbox's own message when it ended or failed, cancelled
   */
  client(sandboxId: SandboxId, signal: AbortSignal): Promise<InitClient>;
  closeAll(): Promise<void>;
}
