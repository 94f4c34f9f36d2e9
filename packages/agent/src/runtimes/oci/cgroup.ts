import { readFileSync } from 'node:fs';
import { readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, isSandboxId, type Clock, type SandboxId } from '@drover/foundation';
import { cgroupRemovalMs } from '../../limits.ts';
import type { RuntimeStats } from '../runtime.ts';
import type { Resources } from './spec.ts';

/** Source: Linux, Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst. */
export type CgroupKind = 'v1' | 'hybrid' | 'v2';

/** The cgroups of this host's sandboxes: where they are, what they count, and their end. The runtime program makes them, with their limits. */
export class Cgroups {
  readonly kind: CgroupKind;
  /** Below each hierarchy, `/drover`. */
  readonly parent: string;
  /** Controller to mount point; `unified` for version 2. */
  readonly #hierarchies: ReadonlyMap<string, string>;

  constructor(parent: string, mountinfo: string = readFileSync('/proc/self/mountinfo', 'utf8')) {
    this.parent = join('/', parent);
    this.#hierarchies = hierarchiesOf(mountinfo);
    const legacy = [...this.#hierarchies.keys()].some((name) => name !== 'unified');
    this.kind = legacy ? (this.#hierarchies.has('unified') ? 'hybrid' : 'v1') : 'v2';
  }

  pathOf(id: SandboxId): string {
    return join(this.parent, id);
  }

  /** Limits that this host cannot enforce, in words. */
  missing(): readonly string[] {
    if (this.#hierarchies.size === 0) return ['memory', 'cpu', 'pids'];
    if (this.kind !== 'v2') return ['memory', 'cpu', 'pids', 'freezer'].filter((name) => !this.#hierarchies.has(name));
    const root = this.#hierarchies.get('unified') ?? '';
    const available = readFileSync(join(root, 'cgroup.controllers'), 'utf8').trim().split(' ');
    return ['memory', 'cpu', 'pids'].filter((name) => !available.includes(name));
  }

  /** May swap be limited? Without swap accounting the kernel has no such file, and needs none when there is no swap. */
  get limitsSwap(): boolean {
    if (this.kind === 'v2') return true;
    return readNumber(this.#file('memory', 'memory.memsw.limit_in_bytes')) !== undefined;
  }

  /** The limit of processes, when it is reached. */
  pidsLimitReached(id: SandboxId): number | undefined {
    const controller = this.kind === 'v2' ? 'unified' : 'pids';
    const [current, limit] = ['pids.current', 'pids.max'].map((name) => readNumber(this.#file(controller, this.pathOf(id), name)));
    return current !== undefined && limit !== undefined && current >= limit ? limit : undefined;
  }

  /** How often the kernel killed in the sandbox for want of memory; 0 when the cgroup is gone. */
  oomKills(id: SandboxId): number {
    const file =
      this.kind === 'v2'
        ? this.#file('unified', this.pathOf(id), 'memory.events')
        : this.#file('memory', this.pathOf(id), 'memory.oom_control');
    return Number(/^oom_kill (\d+)$/m.exec(readText(file) ?? '')?.[1] ?? 0);
  }

  /** How many processes are in the sandbox's own cgroup; 0 when it is gone. */
  processes(id: SandboxId): number {
    const text = readText(this.#file(this.kind === 'v2' ? 'unified' : 'pids', this.pathOf(id), 'cgroup.procs'));
    return text?.match(/\n/g)?.length ?? 0;
  }

  isFrozen(id: SandboxId): boolean {
    if (this.kind === 'v2') return readText(this.#file('unified', this.pathOf(id), 'cgroup.freeze'))?.trim() === '1';
    const state = readText(this.#file('freezer', this.pathOf(id), 'freezer.state'))?.trim();
    return state === 'FROZEN' || state === 'FREEZING';
  }

  /** A frozen process does not die of SIGKILL on version 1 before it thaws. */
  async thaw(id: SandboxId): Promise<void> {
    const [file, value] =
      this.kind === 'v2'
        ? [this.#file('unified', this.pathOf(id), 'cgroup.freeze'), '0']
        : [this.#file('freezer', this.pathOf(id), 'freezer.state'), 'THAWED'];
    if (file === undefined) return;
    await writeFile(file, value, { flag: 'r+' }).catch(ignoreGone);
  }

  /** Sets the limits of one that was made without. Source: Linux, as above; what OCI runtime programs make of these. */
  async limit(id: SandboxId, { cpu, memory, pids }: Resources): Promise<void> {
    const path = this.pathOf(id);
    const set = async (controller: string, name: string, value: number | string): Promise<void> => {
      const file = this.#file(this.kind === 'v2' ? 'unified' : controller, path, name);
      if (file === undefined) throw new DroverError('runtime-failed', `this host has no cgroup controller ${controller}`);
      await writeFile(file, String(value), { flag: 'r+' });
    };
    if (this.kind === 'v2') {
      if (cpu !== undefined) await set('cpu', 'cpu.max', `${cpu.quota} ${cpu.period}`);
      if (memory !== undefined) await set('memory', 'memory.max', memory.limit);
      // Without swap accounting the kernel has no such file, and needs none when there is no swap.
      if (memory?.swap !== undefined) await set('memory', 'memory.swap.max', memory.swap - memory.limit).catch(ignoreGone);
    } else {
      if (cpu !== undefined) await set('cpu', 'cpu.cfs_period_us', cpu.period);
      if (cpu !== undefined) await set('cpu', 'cpu.cfs_quota_us', cpu.quota);
      // In this order: the second may not be below the first.
      if (memory !== undefined) await set('memory', 'memory.limit_in_bytes', memory.limit);
      if (memory?.swap !== undefined) await set('memory', 'memory.memsw.limit_in_bytes', memory.swap);
    }
    if (pids !== undefined) await set('pids', 'pids.max', pids.limit);
  }

  stats(id: SandboxId): RuntimeStats | undefined {
    const path = this.pathOf(id);
    if (this.kind === 'v2') {
      const usage = /^usage_usec (\d+)$/m.exec(readText(this.#file('unified', path, 'cpu.stat')) ?? '')?.[1];
      const memory = readNumber(this.#file('unified', path, 'memory.current'));
      if (usage === undefined || memory === undefined) return undefined;
      return { cpuUsec: Number(usage), memoryBytes: memory, pids: readNumber(this.#file('unified', path, 'pids.current')) ?? 0 };
    }
    const nanoseconds = readNumber(this.#file('cpuacct', path, 'cpuacct.usage'));
    const memory = readNumber(this.#file('memory', path, 'memory.usage_in_bytes'));
    if (memory === undefined) return undefined;
    return {
      cpuUsec: Math.round((nanoseconds ?? 0) / 1000),
      memoryBytes: memory,
      pids: readNumber(this.#file('pids', path, 'pids.current')) ?? 0,
    };
  }

  /** Sandboxes that have a cgroup. */
  async list(): Promise<ReadonlySet<SandboxId>> {
    const found = new Set<SandboxId>();
    for (const mount of new Set(this.#hierarchies.values())) {
      const names = await readdir(join(mount, this.parent)).catch(() => []);
      for (const name of names) if (isSandboxId(name)) found.add(name);
    }
    return found;
  }

  /** Kills what is in the sandbox's cgroups and removes them. Bounded; what will not go stays for the next sweep, and is returned. */
  async remove(id: SandboxId, clock: Clock): Promise<readonly string[]> {
    const deadline = clock.now() + cgroupRemovalMs;
    let left = [...new Set(this.#hierarchies.values())].map((mount) => join(mount, this.pathOf(id)));
    for (;;) {
      left = (await Promise.all(left.map(async (path) => ((await removeTree(path)) ? [] : [path])))).flat();
      if (left.length === 0 || clock.now() >= deadline) return left;
      await clock.sleep(5);
    }
  }

  /** Removes the cgroup of all sandboxes, where it is empty; the runtime program makes it again when it needs it. */
  async removeParent(): Promise<void> {
    for (const mount of new Set(this.#hierarchies.values())) {
      try {
        await rmdir(join(mount, this.parent));
      } catch (error) {
        // Not there, or sandboxes run on in it.
        if (!['ENOENT', 'ENOTEMPTY', 'EBUSY'].includes(errnoOf(error) ?? '')) throw error;
      }
    }
  }

  #file(controller: string, ...parts: string[]): string | undefined {
    const mount = this.#hierarchies.get(controller);
    return mount === undefined ? undefined : join(mount, ...parts);
  }
}

/** True when it is gone. */
async function removeTree(path: string): Promise<boolean> {
  let entries;
  try {
    entries = await readdir(path, { withFileTypes: true });
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return true;
    throw error;
  }
  let gone = true;
  for (const entry of entries) if (entry.isDirectory() && !(await removeTree(join(path, entry.name)))) gone = false;
  const pids = (await readFile(join(path, 'cgroup.procs'), 'utf8').catch(() => '')).split('\n').filter((line) => line !== '');
  for (const pid of pids) {
    try {
      process.kill(Number(pid), 'SIGKILL');
    } catch (error) {
      if (errnoOf(error) !== 'ESRCH') throw error;
    }
  }
  if (!gone || pids.length > 0) return false;
  try {
    await rmdir(path);
    return true;
  } catch (error) {
    // EBUSY: a process is on its way out.
    return errnoOf(error) === 'ENOENT';
  }
}

function hierarchiesOf(mountinfo: string): ReadonlyMap<string, string> {
  const found = new Map<string, string>();
  for (const line of mountinfo.split('\n')) {
    const [before, after] = line.split(' - ');
    const mount = before?.split(' ')[4];
    const [type, , options] = after?.split(' ') ?? [];
    if (mount === undefined || type === undefined) continue;
    if (type === 'cgroup2') found.set('unified', mount);
    if (type === 'cgroup')
      for (const option of (options ?? '').split(',')) if (option !== 'rw' && option !== 'ro') found.set(option, mount);
  }
  return found;
}

function readText(path: string | undefined): string | undefined {
  if (path === undefined) return undefined;
  try {
    return readFileSync(path, 'utf8');
  } catch {
    // The cgroup is gone, or this kernel does not count that: either way there is nothing to say.
    return undefined;
  }
}

function readNumber(path: string | undefined): number | undefined {
  const text = readText(path)?.trim();
  return text === undefined || !/^\d+$/.test(text) ? undefined : Number(text);
}

function ignoreGone(error: unknown): void {
  if (errnoOf(error) !== 'ENOENT') throw error;
}
