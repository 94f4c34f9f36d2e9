import type { Duplex } from 'node:stream';
import type { SandboxId } from '@drover/foundation';
import type { RuntimeName } from '@drover/spec';
import type { Policy } from '@drover/spec/policy';
import type { Finding } from '../finding.ts';
import type { ImageConfig, PullProgress } from '../images/index.ts';
import type { SandboxAddresses } from '../network/index.ts';

/**
 * Runs sandboxes on a host (spec 5): images, network and runtime behind one interface. `testing/conformance.ts` states what each backend must do.
 * Every operation is idempotent (L-19). State that matters is on disk or in the kernel: a new instance over the same directories finds it.
 */
export interface Backend {
  /** The runtime that a sandbox names. */
  readonly name: RuntimeName;
  check(): Promise<readonly Finding[]>;
  /**
   * Sets up the host, and restores the addresses of `known`. Only `check` may be called earlier.
   * @throws {DroverError} invalid-config when the known sandboxes have addresses in another pool; nothing is changed then
   */
  open(known: ReadonlySet<SandboxId>): Promise<void>;
  /** Removes everything that belongs to none of `known`, such as the remains of an interrupted create. Returns the removed ids. */
  sweep(known: ReadonlySet<SandboxId>): Promise<readonly string[]>;
  /** Stops watching and releases what this object holds. Sandboxes run on. */
  close(): Promise<void>;

  /** Makes the sandbox and starts its init. Running: nothing. A create that fails leaves nothing behind. */
  create(request: StartRequest, signal: AbortSignal): Promise<void>;
  /**
   * Starts init again in a sandbox that has ended, with its writable layer as it was left. Running: nothing. After a failure the sandbox has ended.
   * @throws {DroverError} sandbox-not-found
   */
  start(request: StartRequest, signal: AbortSignal): Promise<void>;
  /** Signals init. Ended or absent: nothing. */
  kill(id: SandboxId, signal: 'SIGTERM' | 'SIGKILL'): Promise<void>;
  pause(id: SandboxId): Promise<void>;
  resume(id: SandboxId): Promise<void>;
  /** Kills what runs and releases what only a running sandbox needs, such as its address. The next start has the root as it was left. */
  release(id: SandboxId): Promise<void>;
  /** Kills what runs and removes everything of the sandbox. Absent: nothing. */
  destroy(id: SandboxId): Promise<void>;

  /** Undefined when the sandbox does not exist. */
  inspect(id: SandboxId): Promise<SandboxState | undefined>;
  /** Resolves when the sandbox has ended or is absent; several callers may wait. `inspect` decides; this only triggers it. */
  waitExit(id: SandboxId, signal: AbortSignal): Promise<void>;
  /** Opens a byte stream to a TCP port inside; `init` waits, bounded, until init listens. @throws {DroverError} sandbox-not-running, unavailable */
  dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex>;
  stats(id: SandboxId): Promise<SandboxUsage | undefined>;
  /** The root of a sandbox that has ended, as it was left. Undefined: it runs, or its root is not mounted. */
  stoppedRoot(id: SandboxId): Promise<StoppedRoot | undefined>;
  /** The limits that a running sandbox has reached, and the host's resources that it has used up. */
  exhausted(id: SandboxId): Promise<readonly Exhausted[]>;
  /** Processes that the kernel has killed for want of memory since the start; counted for a while after the end too. */
  oomKills(id: SandboxId): Promise<number>;
  /** Names of the processes that the last `count` of those kills hit, oldest first; fewer where the kernel does not report them. */
  oomVictims(id: SandboxId, count: number): Promise<readonly string[]>;

  /** Replaces what the sandbox may reach; in force when it resolves. */
  applyPolicy(id: SandboxId, policy: Policy): Promise<void>;
  /** Cuts or restores the network, for open connections too (I-4); in force when it resolves. Init's port and the registration port stay open. */
  setCut(id: SandboxId, cut: boolean): Promise<void>;
  /** Closes or opens the registration port (I-4); in force when it resolves. @throws {DroverError} sandbox-not-found when it has no network */
  setRegistrationClosed(id: SandboxId, closed: boolean): Promise<void>;
}

/** One start of a sandbox. */
export interface StartRequest {
  readonly id: SandboxId;
  readonly hostname: string;
  /** An image reference. */
  readonly image: string;
  readonly limits: Limits;
  readonly mounts: readonly Mount[];
  /** Size of an empty tmpfs (0755, noexec) on /run/secrets, into which init puts secrets. Absent: none. */
  readonly secretsBytes?: number;
  /** Mounted read-write at /.drover/run, owned by the sandbox's root, mode 0700: config.json, keys, logs, exit.json (I-6). */
  readonly runDirectory: string;
  readonly onProgress?: (progress: PullProgress) => void;
  /**
   * Completes the run directory and puts the policy in force. Called once, when image and addresses are known, while init is being started;
   * init waits for it. A rejection fails the start. Aborted by `signal` when the start fails otherwise.
   */
  readonly complete: (prepared: PreparedStart, signal: AbortSignal) => Promise<void>;
  /** Called once, when nothing but this keeps init waiting. Init continues when it has resolved, or when this process has ended. */
  readonly opening: () => Promise<void>;
}

export interface PreparedStart {
  readonly imageDigest: string;
  readonly imageConfig: ImageConfig;
  readonly addresses: SandboxAddresses;
}

export interface Mount {
  readonly source: string;
  readonly target: string;
  readonly readOnly: boolean;
}

/** 0: no limit. */
export interface Limits {
  readonly cpuMillis: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly pids: number;
  /** Of /dev/shm; 0: the default. */
  readonly shmBytes: number;
}

export const noLimits: Limits = { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, pids: 0, shmBytes: 0 };

export interface SandboxState {
  readonly phase: 'running' | 'paused' | 'ended';
  /** The host's pid of init, while it runs. */
  readonly pid: number | undefined;
  /** 0 to 255, once ended: from init's exit.json, or 128 + signal when init could not write one. */
  readonly exitCode: number | undefined;
  /** Once ended: the name of the signal that ended its main process; empty: none did, or init left no record. */
  readonly exitSignal: string;
  /** Once ended: the kernel killed its main process, or its init, for want of memory. */
  readonly outOfMemory: boolean;
  /** Milliseconds since the epoch. */
  readonly startedAt: number | undefined;
  readonly finishedAt: number | undefined;
  /** Why init could not start the main process, from its exit.json (reason `start-failed`). */
  readonly startFailure?: string;
  /** Init left no record of the end: it was killed from outside the sandbox, or its host stopped. */
  readonly unrecorded?: boolean;
  /** Init stopped the sandbox because it was idle (R-20; exit.json's reason `idle`). */
  readonly idle?: boolean;
}

export interface SandboxUsage {
  readonly cpuUsec: number;
  readonly memoryBytes: number;
  readonly pids: number;
}

export interface StoppedRoot {
  /** On this host. */
  readonly path: string;
  /** The host's id of the sandbox's user and group 0. */
  readonly firstId: number;
}

export interface Exhausted {
  /** `host-disk`: the sandbox has no disk limit, and the host's disk is full. */
  readonly resource: 'disk' | 'inodes' | 'pids' | 'host-disk';
  /** Bytes, files or processes; 0 for the host's disk. */
  readonly limit: number;
}

/** 128 + SIGKILL: the exit code of a sandbox that left no exit record. */
export const killedExitCode = 137;
