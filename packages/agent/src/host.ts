import { statfs } from 'node:fs/promises';
import { availableParallelism, hostname, loadavg, totalmem } from 'node:os';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { availableMemory, bootId } from '@drover/linux';
import { link } from '@drover/protocol';
import type { Backend } from './backends/index.ts';
import type { Finding } from './finding.ts';
import { defaultSlots } from './limits.ts';
import type { HostDescription, HostInfo, HostLoad } from './link/index.ts';

export interface LinuxHostOptions {
  readonly stateDirectory: string;
  readonly name?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly zone?: string;
  /** CPUs offered, in thousandths. Default: all of the machine. */
  readonly cpuMillis?: number;
  /** Memory that is not offered to sandboxes. Bytes; default 0. */
  readonly reservedMemoryBytes?: number;
  /** Sandboxes at most. */
  readonly slots?: number;
  readonly backends: readonly Pick<Backend, 'name' | 'check'>[];
  /** Further checks for the diagnosis. */
  readonly check?: () => Promise<readonly Finding[]>;
}

/** This machine's resources and load (L-6, L-9), from the kernel. */
export class LinuxHost implements HostInfo {
  readonly #options: LinuxHostOptions;

  constructor(options: LinuxHostOptions) {
    this.#options = options;
  }

  async describe(): Promise<HostDescription> {
    const disk = await statfs(this.#options.stateDirectory);
    return {
      hostname: this.#options.name ?? hostname(),
      labels: this.#options.labels ?? {},
      zone: this.#options.zone ?? '',
      capacity: {
        cpuMillis: this.#options.cpuMillis ?? availableParallelism() * 1000,
        // --standbys may set aside more than the machine has.
        memoryBytes: Math.max(0, totalmem() - (this.#options.reservedMemoryBytes ?? 0)),
        diskBytes: disk.blocks * disk.bsize,
        slots: this.#options.slots ?? defaultSlots,
      },
      runtimes: this.#options.backends.map(({ name }) => name),
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
    const { backends, check } = this.#options;
    const checks = [...backends.map(async (backend) => await backend.check()), ...(check === undefined ? [] : [check()])];
    const findings = (await Promise.all(checks)).flat();
    return { findings: findings.map((finding) => ({ ...finding, level: levels[finding.level] })) };
  }
}

const levels: Record<Finding['level'], link.Finding_Level> = {
  ok: link.Finding_Level.OK,
  warning: link.Finding_Level.WARNING,
  problem: link.Finding_Level.PROBLEM,
};
