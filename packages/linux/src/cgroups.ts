import { readFileSync } from 'node:fs';
import { readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, type Clock } from '@drover/foundation';
import { cgroupRemovalMs } from './limits.ts';
import { mountTable, type MountEntry } from './proc.ts';
import { signalProcess } from './process-calls.ts';

/** Limits of a cgroup, in the form of the OCI runtime specification (config-linux.md, "Control groups"). */
export interface CgroupLimits {
  /** Microseconds. */
  readonly cpu?: { readonly period: number; readonly quota: number };
  /** Bytes; `swap` is memory and swap together. */
  readonly memory?: { readonly limit: number; readonly swap?: number };
  readonly pids?: { readonly limit: number };
}

/** What the processes of a cgroup have used, and use. */
export interface CgroupUsage {
  readonly cpuUsec: number;
  readonly memoryBytes: number;
  readonly pids: number;
}

type Controller = 'memory' | 'cpu' | 'cpuacct' | 'pids' | 'freezer';

/**
 * The cgroups below one parent, on a host with version 1, version 2 or both (hybrid). Source: Linux, Documentation/admin-guide/cgroup-v1 and
 * cgroup-v2.rst. A cgroup that does not exist counts as empty.
 */
export class Cgroups {
  readonly kind: 'v1' | 'hybrid' | 'v2';
  /** In each hierarchy: `/drover`. */
  readonly parent: string;
  /** Mount points by controller; `unified` is version 2. */
  readonly #hierarchies: ReadonlyMap<string, string>;

  constructor(parent: string, mounts: readonly MountEntry[] = mountTable()) {
    this.parent = join('/', parent);
    this.#hierarchies = hierarchiesOf(mounts);
    const isVersion1 = this.#hierarchies.keys().some((name) => name !== 'unified');
    this.kind = isVersion1 ? (this.#hierarchies.has('unified') ? 'hybrid' : 'v1') : 'v2';
  }

  pathOf(name: string): string {
    return join(this.parent, name);
  }

  /** The controllers whose limits this host cannot enforce. */
  missing(): readonly string[] {
    if (this.#hierarchies.size === 0) return ['memory', 'cpu', 'pids'];
    if (this.kind !== 'v2') return ['memory', 'cpu', 'pids', 'freezer'].filter((name) => !this.#hierarchies.has(name));
    const root = this.#hierarchies.get('unified') ?? '';
    const available = readFileSync(join(root, 'cgroup.controllers'), 'utf8').trim().split(' ');
    return ['memory', 'cpu', 'pids'].filter((name) => !available.includes(name));
  }

  /** Whether swap can be limited. Without swap accounting the kernel has no file for it. */
  get limitsSwap(): boolean {
    if (this.kind === 'v2') return true;
    const memory = this.#hierarchies.get('memory');
    return memory !== undefined && readText(join(memory, 'memory.memsw.limit_in_bytes')) !== undefined;
  }

  /** The limit of processes, when it is reached. */
  pidsLimitReached(name: string): number | undefined {
    const [current, limit] = ['pids.current', 'pids.max'].map((file) => this.#number('pids', name, file));
    return current !== undefined && limit !== undefined && current >= limit ? limit : undefined;
  }

  /** How often the kernel killed in the cgroup for lack of memory. */
  oomKills(name: string): number {
    return oomKillsIn(this.#text('memory', name, this.kind === 'v2' ? 'memory.events' : 'memory.oom_control'));
  }

  /** How many processes are in the cgroup itself. */
  processes(name: string): number {
    return this.#text('pids', name, 'cgroup.procs')?.match(/\n/g)?.length ?? 0;
  }

  isFrozen(name: string): boolean {
    const state = this.#text('freezer', name, this.kind === 'v2' ? 'cgroup.freeze' : 'freezer.state')?.trim();
    return state === '1' || state === 'FROZEN' || state === 'FREEZING';
  }

  /** On version 1, a frozen process is killed by SIGKILL only when it thaws. */
  async thaw(name: string): Promise<void> {
    const [file, value] = this.kind === 'v2' ? ['cgroup.freeze', '0'] : ['freezer.state', 'THAWED'];
    const path = this.#path('freezer', name, file);
    if (path !== undefined) await writeFile(path, value, { flag: 'r+' }).catch(ignoreAbsent);
  }

  /** Sets the limits of a cgroup that was made without, as an OCI runtime program would. @throws {DroverError} runtime-failed */
  async limit(name: string, { cpu, memory, pids }: CgroupLimits): Promise<void> {
    const set = async (controller: Controller, file: string, value: number | string): Promise<void> => {
      const path = this.#path(controller, name, file);
      if (path === undefined) throw new DroverError('runtime-failed', `this host has no cgroup controller ${controller}`);
      await writeFile(path, String(value), { flag: 'r+' });
    };
    const isV2 = this.kind === 'v2';
    if (cpu !== undefined && isV2) await set('cpu', 'cpu.max', `${cpu.quota} ${cpu.period}`);
    if (cpu !== undefined && !isV2) {
      await set('cpu', 'cpu.cfs_period_us', cpu.period);
      await set('cpu', 'cpu.cfs_quota_us', cpu.quota);
    }
    // Memory first: on version 1, the limit of both together may not be lower.
    if (memory !== undefined) await set('memory', isV2 ? 'memory.max' : 'memory.limit_in_bytes', memory.limit);
    if (memory?.swap !== undefined && isV2) await set('memory', 'memory.swap.max', memory.swap - memory.limit).catch(ignoreAbsent);
    if (memory?.swap !== undefined && !isV2) await set('memory', 'memory.memsw.limit_in_bytes', memory.swap);
    if (pids !== undefined) await set('pids', 'pids.max', pids.limit);
  }

  /** Undefined when the cgroup does not exist. */
  stats(name: string): CgroupUsage | undefined {
    const isV2 = this.kind === 'v2';
    const memoryBytes = this.#number('memory', name, isV2 ? 'memory.current' : 'memory.usage_in_bytes');
    const cpuUsec = isV2
      ? Number(/^usage_usec (\d+)$/m.exec(this.#text('cpu', name, 'cpu.stat') ?? '')?.[1] ?? Number.NaN)
      : Math.round((this.#number('cpuacct', name, 'cpuacct.usage') ?? 0) / 1000);
    if (memoryBytes === undefined || Number.isNaN(cpuUsec)) return undefined;
    return { cpuUsec, memoryBytes, pids: this.#number('pids', name, 'pids.current') ?? 0 };
  }

  /** The names of the cgroups below the parent, in any hierarchy. */
  async list(): Promise<ReadonlySet<string>> {
    const names = new Set<string>();
    for (const mount of this.#mounts()) {
      const entries = await readdir(join(mount, this.parent), { withFileTypes: true }).catch(() => []);
      for (const entry of entries) if (entry.isDirectory()) names.add(entry.name);
    }
    return names;
  }

  /**
   * Kills the processes of a cgroup and removes it from every hierarchy, within `cgroupRemovalMs`.
   * @returns the paths that remain, for the next sweep
   */
  async remove(name: string, clock: Clock): Promise<readonly string[]> {
    const deadline = clock.now() + cgroupRemovalMs;
    let left = this.#mounts().map((mount) => join(mount, this.pathOf(name)));
    for (;;) {
      left = (await Promise.all(left.map(async (path) => ((await removeTree(path)) ? [] : [path])))).flat();
      if (left.length === 0 || clock.now() >= deadline) return left;
      await clock.sleep(5);
    }
  }

  /** Removes the parent where it is empty; the runtime program makes it again when it needs it. */
  async removeParent(): Promise<void> {
    for (const mount of this.#mounts()) {
      try {
        await rmdir(join(mount, this.parent));
      } catch (error) {
        // It does not exist, or sandboxes run in it.
        if (!['ENOENT', 'ENOTEMPTY', 'EBUSY'].includes(errnoOf(error) ?? '')) throw error;
      }
    }
  }

  #mounts(): readonly string[] {
    return [...new Set(this.#hierarchies.values())];
  }

  /** A file of a cgroup. Version 2 has the files of all controllers in one directory. */
  #path(controller: Controller, name: string, file: string): string | undefined {
    const mount = this.#hierarchies.get(this.kind === 'v2' ? 'unified' : controller);
    return mount === undefined ? undefined : join(mount, this.pathOf(name), file);
  }

  #text(controller: Controller, name: string, file: string): string | undefined {
    const path = this.#path(controller, name, file);
    return path === undefined ? undefined : readText(path);
  }

  #number(controller: Controller, name: string, file: string): number | undefined {
    const text = this.#text(controller, name, file)?.trim();
    return text === undefined || !/^\d+$/.test(text) ? undefined : Number(text);
  }
}

/** The same count for the cgroup of this process, in a sandbox that has its own cgroup mounted on `root`. */
export function ownOomKills(root = '/sys/fs/cgroup'): number {
  return oomKillsIn(readText(join(root, 'memory.events')) ?? readText(join(root, 'memory/memory.oom_control')));
}

function oomKillsIn(text: string | undefined): number {
  return Number(/^oom_kill (\d+)$/m.exec(text ?? '')?.[1] ?? 0);
}

/** Kills the processes of a cgroup and of those below it. @returns whether all of them are removed */
async function removeTree(path: string): Promise<boolean> {
  let entries;
  try {
    entries = await readdir(path, { withFileTypes: true });
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return true;
    throw error;
  }
  let childrenRemoved = true;
  for (const entry of entries) if (entry.isDirectory() && !(await removeTree(join(path, entry.name)))) childrenRemoved = false;
  const pids = (await readFile(join(path, 'cgroup.procs'), 'utf8').catch(() => '')).split('\n').filter((line) => line !== '');
  for (const pid of pids) signalProcess(Number(pid), 'SIGKILL');
  if (!childrenRemoved || pids.length > 0) return false;
  try {
    await rmdir(path);
    return true;
  } catch (error) {
    // EBUSY: a process has not exited yet.
    return errnoOf(error) === 'ENOENT';
  }
}

function hierarchiesOf(mounts: readonly MountEntry[]): ReadonlyMap<string, string> {
  const found = new Map<string, string>();
  for (const { target, type, options } of mounts) {
    if (type === 'cgroup2') found.set('unified', target);
    if (type === 'cgroup') for (const option of options) if (option !== 'rw' && option !== 'ro') found.set(option, target);
  }
  return found;
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    // The cgroup does not exist, or this kernel does not count that.
    return undefined;
  }
}

function ignoreAbsent(error: unknown): void {
  if (errnoOf(error) !== 'ENOENT') throw error;
}
