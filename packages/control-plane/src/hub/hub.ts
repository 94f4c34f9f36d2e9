import type { Duplex } from 'node:stream';
import { isSandboxId, type HostId, type SandboxId } from '@drover/foundation';
import type { link, sandbox } from '@drover/protocol';

/** An operation of the link, as `{ case: 'create', value: … }`. */
export type Operation = Exclude<link.Command['operation'], { case: undefined }>;
export type ResultValue = link.CommandResult['value'];

/** The hub holds the hosts' streams: it sends commands, correlates results and opens tunnels. */
export interface Hub {
  isConnected(hostId: HostId): boolean;
  /**
   * Sends one command and waits for its result.
   * The signal ends the wait, not the work on the host (L-21).
   * @throws {DroverError} host-unavailable immediately when not connected (L-15) or when the stream drops (L-16); queue-full (L-17);
   *   timed-out; the error that the host returned
   */
  call(hostId: HostId, operation: Operation, options?: CallOptions): Promise<ResultValue>;
  /** A byte stream to a port in a sandbox (L-30). Its `end()` half-closes; its `destroy()` closes both sides. */
  openTunnel(hostId: HostId, target: TunnelTarget, signal?: AbortSignal): Promise<Duplex>;
  /** Reads the host's own data of a sandbox, such as its log, as HostStreamMessages (`readHostStream`). */
  openHostStream(hostId: HostId, sandboxId: SandboxId, source: HostStreamSource, signal?: AbortSignal): Promise<Duplex>;
  /** Ends the host's stream with GoAway. Has no effect when the host is not connected. */
  disconnect(hostId: HostId, reason: link.GoAway_Reason, message: string): void;
  on(listener: HubListener): () => void;
  /** Hosts with an open stream, and commands waiting for results. */
  stats(): { readonly hosts: number; readonly pendingCommands: number };
}

export interface CallOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: link.CommandProgress) => void;
  /** Chosen by a caller that may repeat the command over a reconnect (L-19). */
  readonly commandId?: string;
  readonly deadline?: Date;
}

/** The source of a host's stream: `{ case: 'logs', value: … }`. */
export type HostStreamSource = Exclude<link.OpenTunnel['target'], { case: 'init' | 'port' | undefined }>;

export interface TunnelTarget {
  readonly sandboxId: SandboxId;
  /** The session port of init, or a TCP port inside the sandbox. */
  readonly port: 'init' | number;
}

/** A host's report about a copy that it holds. The id is checked on arrival. */
export type Observation = sandbox.SandboxObservation & { readonly sandboxId: SandboxId };

/** Called after the store holds the change. Must not throw; must return fast. */
export interface HubListener {
  /** A stream registered. `signal` aborts when this stream ends or is superseded. */
  hostConnected?(hostId: HostId, epoch: number, signal: AbortSignal, copies: readonly Observation[]): void;
  hostDisconnected?(hostId: HostId, epoch: number, reason: string): void;
  observed?(hostId: HostId, observations: readonly Observation[]): void;
}

export function isObservation(copy: sandbox.SandboxObservation): copy is Observation {
  return isSandboxId(copy.sandboxId);
}
