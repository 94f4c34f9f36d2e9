import type { Duplex } from 'node:stream';
import type { SandboxId } from '@drover/foundation';
import type { Finding } from '../finding.ts';
import type { NetworkAttachment } from '../network/index.ts';

export type { Finding as RuntimeFinding } from '../finding.ts';
export type { NetworkAttachment } from '../network/index.ts';

/**
 * What makes a sandbox on a host (spec 5.2). One conformance suite (`conformance.ts`) says what each must do.
 * Every operation is idempotent by what it asks for (L-19). The runtime keeps no state that matters in memory:
 * a new instance over the same directories finds everything again.
 */
export interface Runtime {
  readonly name: 'oci' | 'docker' | 'microvm' | 'fake';
  /** What is missing to run, in words; empty when it can run. */
  check(): Promise<readonly Finding[]>;
  /** Makes the sandbox's root, namespaces and cgroup, and starts its init. Existing and alive: does nothing. */
  create(request: CreateRequest, signal: AbortSignal): Promise<void>;
  /**
   * Starts an init ahead, in a root of its own with nothing in it, which waits for a sandbox to be of (`CreateRequest.standby`). It is ready
   * for one when it has written `standbyFile` in its run directory, and not before: until then it opens files, which a change of its root
   * would hide. It ends with this process, or by `destroy`. Undefined: this runtime cannot.
   */
  readonly standBy: ((request: StandbyRequest, signal: AbortSignal) => Promise<void>) | undefined;
  /** Starts init again in a sandbox that has ended, with its writable layer as it was left. Running: nothing. @throws {DroverError} sandbox-not-found */
  start(request: CreateRequest, signal: AbortSignal): Promise<void>;
  /** Signals init; gone or ended: nothing. */
  kill(id: SandboxId, signal: 'SIGTERM' | 'SIGKILL'): Promise<void>;
  pause(id: SandboxId): Promise<void>;
  resume(id: SandboxId): Promise<void>;
  /** Undefined when there is none. */
  inspect(id: SandboxId): Promise<RuntimeState | undefined>;
  list(): Promise<readonly SandboxId[]>;
  /** Kills what runs and removes everything that `create` made. Gone: nothing. */
  destroy(id: SandboxId): Promise<void>;
  /** Removes what belongs to none of `known`: mounts, cgroups, directories of crashed creates. */
  sweep(known: ReadonlySet<SandboxId>): Promise<readonly SandboxId[]>;
  /** Resolves when the sandbox has ended; several may wait. The level (inspect) is what counts, this only says when to look. */
  waitExit(id: SandboxId, signal: AbortSignal): Promise<void>;
  /** A byte stream to a TCP port inside; `init` waits, bounded, until init listens. @throws {DroverError} sandbox-not-running, unavailable */
  dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex>;
  stats(id: SandboxId): Promise<RuntimeStats | undefined>;
  /** The root of a sandbox that has ended, as it was left. Undefined: it runs, or its root is no longer mounted. */
  stoppedRoot(id: SandboxId): Promise<StoppedRoot | undefined>;
  /** The limits that it has reached and what it uses up of its host, while it runs. */
  exhausted(id: SandboxId): Promise<readonly Exhausted[]>;
  /** How often the kernel has killed a process in it for want of memory since its start; also for a while after its end. */
  oomKills(id: SandboxId): Promise<number>;
  /** The names of the processes that the last `count` of those kills hit, oldest first; fewer, or none, where the kernel does not say. */
  oomVictims(id: SandboxId, count: number): Promise<readonly string[]>;
}

export interface StoppedRoot {
  /** On this host. */
  readonly path: string;
  /** The host's id of the sandbox's user and group 0. */
  readonly firstId: number;
}

export interface Exhausted {
  /** `host-disk`: it has no disk of its own, and the host's is full. */
  readonly resource: 'disk' | 'inodes' | 'pids' | 'host-disk';
  /** Bytes, files or processes; 0 for the host's disk. */
  readonly limit: number;
}

export interface CreateRequest {
  readonly id: SandboxId;
  readonly hostname: string;
  /** Read-only layers, lowest first; each a directory that the image store keeps while it is held. */
  readonly layers: readonly string[];
  /** The one of them whose owner and mode the root has; absent: the uppermost. */
  readonly rootLayer?: string;
  /** The one of them that is a directory of the host's, which may be on a file system that hangs. */
  readonly foreignLayer?: string;
  /** More overlays over the root (image `host`): `lower` read-only under a writable directory of the sandbox, at `target`. */
  readonly submounts?: readonly { readonly lower: string; readonly target: string }[];
  readonly network: NetworkAttachment;
  readonly limits: Limits;
  readonly mounts: readonly { readonly source: string; readonly target: string; readonly readOnly: boolean }[];
  /** Mounts an empty tmpfs (0755, noexec) of so many bytes on /run/secrets, for init to put secrets into; absent: none. */
  readonly secretsBytes?: number;
  /** Mounted read-only at /.drover: node, its libraries and init's bundle (I-38). */
  readonly initDirectory: string;
  /** Mounted read-write at /.drover/run, owned by the sandbox's root, mode 0700: config.json, keys, logs, exit.json (I-6). */
  readonly runDirectory: string;
  /** Init is started while the run directory is still being made, and waits at this gate. Absent: it is complete. */
  readonly gate?: StartGate;
  /** Made of what stands by under this id, with this request's network, where that is possible; it is gone afterwards in any case. */
  readonly standby?: SandboxId;
}

export type StandbyRequest = Pick<CreateRequest, 'id' | 'network' | 'initDirectory' | 'runDirectory'>;

export interface StartGate {
  /** Resolves when the run directory is complete. Rejected: the start is given up, and fails with the same. */
  readonly completed: Promise<void>;
  /** Called once, when init waits and what it waits for is the sandbox's own: it goes on when this has resolved, or this process is gone. */
  readonly opening: () => Promise<void>;
}

export interface Limits {
  /** 0: none. */
  readonly cpuMillis: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly pids: number;
  /** Of /dev/shm; 0: the default. */
  readonly shmBytes: number;
}

export interface RuntimeState {
  readonly phase: 'running' | 'paused' | 'ended';
  /** The host's pid of init, while it runs. */
  readonly pid: number | undefined;
  /** 0 to 255, once ended; init's exit.json, or 128 + signal when it could not write one. */
  readonly exitCode: number | undefined;
  /** Once ended: the name of the signal that ended its main process; empty: none did, or init left no record. */
  readonly exitSignal: string;
  /** Once ended: the kernel killed its main process, or its init, for want of memory. */
  readonly outOfMemory: boolean;
  /** Milliseconds since the epoch. */
  readonly startedAt: number | undefined;
  readonly finishedAt: number | undefined;
  /** Why init could not start the main process, as its exit.json says (reason `start-failed`). */
  readonly startFailure?: string;
  /** Init left no record of the end: it was killed from outside the sandbox, or its host stopped. */
  readonly unrecorded?: boolean;
  /** Init stopped it because it was idle for so long (R-20; exit.json's reason `idle`). */
  readonly idle?: boolean;
}

export interface RuntimeStats {
  readonly cpuUsec: number;
  readonly memoryBytes: number;
  readonly pids: number;
}

/** 128 + SIGKILL: what is reported of a sandbox that left no word. */
export const killedExitCode = 137;
