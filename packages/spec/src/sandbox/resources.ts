import { formatBytes } from '@drover/foundation';
import { invalid } from '../invalid.ts';
import { maxCpuMillis, maxPids, minMemoryBytes } from '../limits.ts';

/** What a sandbox may use; 0: no limit, or the default of its host. */
export interface Resources {
  readonly cpuMillis: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly pids: number;
  /** Of /dev/shm, which counts as memory of the sandbox. */
  readonly shmBytes: number;
}

export interface ResourcesInput {
  readonly cpuMillis: number;
  readonly memoryBytes: bigint;
  readonly diskBytes: bigint;
  readonly pids: number;
  readonly shmBytes: bigint;
}

/** @throws {DroverError} invalid-argument */
export function parseResources(input: ResourcesInput | undefined): Resources {
  if (input === undefined) return { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, pids: 0, shmBytes: 0 };
  const { cpuMillis, pids } = input;
  const [memoryBytes, diskBytes, shmBytes] = [Number(input.memoryBytes), Number(input.diskBytes), Number(input.shmBytes)];
  if (memoryBytes !== 0 && memoryBytes < minMemoryBytes) {
    throw invalid(`${memoryBytes} bytes of memory are too few to start anything`, `use at least ${formatBytes(minMemoryBytes)}`);
  }
  if ([memoryBytes, diskBytes, shmBytes].some((bytes) => bytes > Number.MAX_SAFE_INTEGER)) {
    throw invalid('a size is larger than any machine', 'check its unit');
  }
  if (memoryBytes !== 0 && shmBytes > memoryBytes) {
    throw invalid(`/dev/shm of ${shmBytes} bytes is more than the memory limit of ${memoryBytes}`, 'raise --memory, or lower --shm-size');
  }
  if (cpuMillis > maxCpuMillis) throw invalid(`${cpuMillis / 1000} CPUs are more than any machine has`, 'check the number');
  if (pids > maxPids) throw invalid(`${pids} processes are more than Linux can have`, `use at most ${maxPids}`);
  return { cpuMillis, memoryBytes, diskBytes, pids, shmBytes };
}
