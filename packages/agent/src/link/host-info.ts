import type { MessageInitShape } from '@bufbuild/protobuf';
import type { link } from '@drover/protocol';

/** A host's description, which each registration contains (L-6). */
export interface HostDescription {
  readonly hostname: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly zone: string;
  readonly capacity: { readonly cpuMillis: number; readonly memoryBytes: number; readonly diskBytes: number; readonly slots: number };
  readonly runtimes: readonly string[];
  /** /proc/sys/kernel/random/boot_id */
  readonly bootId: string;
}

/** The load in each heartbeat (L-9). */
export interface HostLoad {
  /** Load average over one minute, times 1000. */
  readonly loadMilli: number;
  readonly memoryAvailableBytes: number;
  readonly diskAvailableBytes: number;
}

export interface HostInfo {
  describe(): Promise<HostDescription> | HostDescription;
  load(): Promise<HostLoad> | HostLoad;
  /** For CollectDiagnostics; without it the command is unimplemented. */
  diagnose?(): Promise<MessageInitShape<typeof link.DiagnosticsSchema>>;
}
