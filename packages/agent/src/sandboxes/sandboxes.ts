import type { Duplex } from 'node:stream';
import type { MessageInitShape } from '@bufbuild/protobuf';
import type { SandboxId } from '@drover/foundation';
import type { LogEntry } from '@drover/init';
import type { link, sandbox } from '@drover/protocol';
import type { Policy } from '@drover/spec/policy';
import type { SandboxUsage } from '../backends/index.ts';
import type { PullProgress } from '../images/index.ts';
import type { ReceivedSpec } from './received-spec.ts';

/**
 * The sandboxes of one host. Operations on one sandbox run one after another; different sandboxes never wait for each other. Work lives
 * under the agent's lifetime (L-23).
 */
export interface Sandboxes {
  create(command: CreateCommand, onProgress: (progress: PullProgress) => void): Promise<sandbox.SandboxObservation>;
  start(command: StartCommand): Promise<sandbox.SandboxObservation>;
  /** Undefined when the sandbox does not exist. */
  stop(command: StopCommand): Promise<sandbox.SandboxObservation | undefined>;
  pause(command: SandboxCommand): Promise<sandbox.SandboxObservation>;
  resume(command: SandboxCommand): Promise<sandbox.SandboxObservation>;
  /** Cuts or restores the network, running or not, until the opposite is requested (I-4). @throws {DroverError} sandbox-not-found */
  setClosure(command: SandboxCommand & NetworkClosure): Promise<sandbox.SandboxObservation>;
  destroy(id: SandboxId): Promise<void>;
  inspect(id: SandboxId): sandbox.SandboxObservation;
  list(): readonly sandbox.SandboxObservation[];
  applyPolicy(id: SandboxId, policy: Policy): Promise<void>;
  /** The retained output of the main process, oldest first, running or not. @throws {DroverError} sandbox-not-found */
  logs(id: SandboxId, options: LogOptions, signal: AbortSignal): AsyncIterable<LogEntry>;
  /** Copies out of a sandbox that has ended. @throws {DroverError} sandbox-not-found, failed-precondition */
  copyOut(id: SandboxId, source: CopySource, signal: AbortSignal): AsyncIterable<CopyPart>;
  /** What running sandboxes use now. @param ids default: all */
  stats(ids?: readonly SandboxId[]): Promise<readonly SandboxStats[]>;
  /** Opens a byte stream to a TCP port inside. @throws {DroverError} sandbox-not-found, sandbox-not-running, unavailable */
  dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex>;
  /** Every change of an observation, in order per sandbox. */
  onObserved(listener: (observation: sandbox.SandboxObservation) => void): () => void;
}

export interface SandboxCommand {
  readonly id: SandboxId;
  /** The generation of the desired state that the command carries out. */
  readonly generation: number;
}

/** The parts of a sandbox's network that containment closes (I-4). */
export interface NetworkClosure {
  readonly networkCut: boolean;
  readonly registrationClosed: boolean;
}

export interface StartCommand extends SandboxCommand, NetworkClosure {
  readonly secrets: readonly sandbox.SecretValue[];
}

export interface CreateCommand extends StartCommand {
  readonly project: string;
  readonly name: string;
  readonly spec: ReceivedSpec;
}

export interface StopCommand extends SandboxCommand {
  /** Milliseconds; 0: the sandbox's own, or the default. */
  readonly graceMs: number;
}

export interface LogOptions {
  /** 0: all. */
  readonly tailLines: number;
  /** Milliseconds since the epoch. */
  readonly sinceMs: number;
}

export interface CopySource {
  /** In the sandbox; a byte string. */
  readonly path: Uint8Array;
  readonly followLinks: boolean;
}

export type CopyPart = MessageInitShape<typeof link.HostStreamMessageSchema>;

export interface SandboxStats extends SandboxUsage {
  readonly id: SandboxId;
  /** Milliseconds since the epoch. */
  readonly at: number;
}

/** An occurrence in a sandbox that the control plane stores. */
export interface SandboxEvent {
  readonly id: SandboxId;
  /** Milliseconds since the epoch. */
  readonly at: number;
  readonly event:
    | { readonly case: 'oomKill'; readonly value: { readonly process: string; readonly count: number } }
    | { readonly case: 'limitReached'; readonly value: { readonly resource: string; readonly message: string } }
    | { readonly case: 'egressDenied'; readonly value: DeniedEgress };
}

/** Attempts to reach one destination that the gateway refused. */
export interface DeniedEgress {
  readonly host: string;
  readonly port: number;
  readonly method: string;
  readonly rule: string;
  readonly count: number;
}

/** Requests from the control plane the certificate of a start (I-6) and the token that its init registers with (I-13). */
export type SignSandboxCertificate = (
  id: SandboxId,
  csrDer: Uint8Array,
  signal: AbortSignal,
) => Promise<{ readonly certificatePem: string; readonly caPem: string; readonly bootstrapToken: string }>;
