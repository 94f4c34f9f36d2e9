import type { Duplex } from 'node:stream';
import type { MessageInitShape } from '@bufbuild/protobuf';
import type { SandboxId } from '@drover/foundation';
import type { link, sandbox } from '@drover/protocol';

/**
 * The sandboxes of one host: images, network and runtime put together, with what is known of each kept on disk.
 * The link calls it; nothing in it knows of gRPC. Operations on one sandbox run one after another; different
 * sandboxes never wait for each other. Work lives under the agent's lifetime (L-23).
 */
export interface Sandboxes {
  /** Loads what an earlier agent left, adopts what runs, records what ended, sweeps what belongs to nobody. */
  start(): Promise<void>;
  create(command: link.CreateSandbox, progress: (progress: link.CommandProgress) => void): Promise<sandbox.SandboxObservation>;
  startAgain(command: link.StartSandbox): Promise<sandbox.SandboxObservation>;
  stop(command: link.StopSandbox): Promise<sandbox.SandboxObservation | undefined>;
  pause(command: link.PauseSandbox): Promise<sandbox.SandboxObservation>;
  resume(command: link.ResumeSandbox): Promise<sandbox.SandboxObservation>;
  /** Cuts or restores its network, running or not, until the opposite is asked for (I-4). @throws {DroverError} sandbox-not-found */
  setNetworkCut(command: link.SetNetworkCut): Promise<sandbox.SandboxObservation>;
  destroy(command: link.DestroySandbox): Promise<void>;
  inspect(id: SandboxId): Promise<sandbox.SandboxObservation>;
  list(): readonly sandbox.SandboxObservation[];
  applyPolicy(command: link.ApplyPolicy): Promise<void>;
  /** What this host keeps of a sandbox, running or not. @throws {DroverError} sandbox-not-found */
  hostStream(id: SandboxId, source: HostStreamSource, signal: AbortSignal): HostStream;
  /** What those that run use now; of a sandbox that does not run, nothing. */
  stats(command: link.CollectStats): Promise<link.Stats>;
  dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex>;
  /** Every change of an observation, in order per sandbox. */
  onObserved(listener: (observation: sandbox.SandboxObservation) => void): () => void;
  /** Stops watching; sandboxes run on. */
  close(): Promise<void>;
}

/** What a host's stream is of: `{ case: 'logs', value: … }`. */
export type HostStreamSource = Exclude<link.OpenTunnel['target'], { case: 'init' | 'port' | undefined }>;
export type HostStreamPart = MessageInitShape<typeof link.HostStreamMessageSchema>;
export type HostStream = AsyncIterable<HostStreamPart>;

/** How a start of a sandbox gets its certificate (I-6) and the token that its init registers with (I-13): the link asks the control plane to sign. */
export type SignSandboxCertificate = (
  id: SandboxId,
  csrDer: Uint8Array,
  signal: AbortSignal,
) => Promise<{ readonly certificatePem: string; readonly caPem: string; readonly bootstrapToken: string }>;
