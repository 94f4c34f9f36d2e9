import { statfs } from 'node:fs/promises';
import { availableParallelism, hostname, loadavg, totalmem } from 'node:os';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { availableMemory, bootId } from '@drover/linux';
import { link } from '@drover/protocol';
import { defaultSlots } from './limits.ts';
import type { HostDescription, HostInfo, HostLoad } from './link/index.ts';
import type { Runtime, RuntimeFinding } from './runtimes/index.ts';

export interface LinuxHostOptions {
  readonly stateDirectory: string;
  readonly name?: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly zone: string;
  /** CPUs offered, in thousandths. Default: all there are. */
  readonly cpuMillis?: number;
  /** Memory that is not offered to sandboxes. Bytes; default 0. */
  readonly reservedMemoryBytes?: number;
  /** Sandboxes at most. */
  readonly slots?: number;
  readonly runtimes: readonly Runtime[];
  /** What else is looked at when somebody asks what this host can do. */
  readonly checks?: readonly (() => Promise<RuntimeFinding>)[];
}

/** What this machine has and how it fares (L-6, L-9), from the kernel. */
export class LinuxHost implements HostInfo {
  readonly #options: LinuxHostOptions;

  constructor(options: LinuxHostOptions) {
    this.#options = options;
  }

  async describe(): Promise<HostDescription> {
    const disk = await statfs(this.#options.stateDirectory);
    return {
      hostname: this.#options.name ?? hostname(),
      labels: this.#options.labels,
      zone: this.#options.zone,
      capacity: {
        cpuMillis: this.#options.cpuMillis ?? availableParallelism() * 1000,
        // Somebody may keep more than there is.
        memoryBytes: Math.max(0, totalmem() - (this.#options.reservedMemoryBytes ?? 0)),
        diskBytes: disk.blocks * disk.bsize,
        slots: this.#options.slots ?? defaultSlots,
      },
      runtimes: this.#options.runtimes.map((runtime) => runtime.name),
      bootId: bootId(),
    };
  }

  async load(): Promise<HostLoad> {
    const disk = await statfs(this.#options.stateDirectory);
    return {
      loadMilli: Math.round((loadavg()[0] ?? 0) * 1000),
      memoryAvailableBytes: availableMemory(),
      diskAvailableBytes: disk.bavail * disk.bsize,
    };
  }

  async diagnose(): Promise<MessageInitShape<typeof link.DiagnosticsSchema>> {
    const { runtimes, checks = [] } = this.#options;
    const ofRuntimes = await Promise.all(runtimes.map(async (runtime) => await runtime.check()));
    const findings = [...ofRuntimes.flat(), ...(await Promise.all(checks.map(async (check) => await check())))];
    return { findings: findings.map((finding) => ({ ...finding, level: levels[finding.level] })) };
  }
}

const levels: Record<RuntimeFinding['level'], link.Finding_Level> = {
  ok: link.Finding_Level.OK,
  warning: link.Finding_Level.WARNING,
  problem: link.Finding_Level.PROBLEM,
};
