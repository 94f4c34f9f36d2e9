import { chmod, chown, mkdir, readdir } from 'node:fs/promises';
import {
  DroverError,
  errnoOf,
  isSandboxId,
  makeDirectories,
  systemClock,
  type Clock,
  type Logger,
  type SandboxId,
} from '@drover/foundation';
import { Cgroups, Mounts } from '@drover/linux';
import { RootReplacer } from '@drover/linux/root-replacement';
import { ForeignPaths } from '../../foreign/index.ts';
import { readRecord, writeRecord, type ContainerRecord } from './container-record.ts';
import { ExitWatch } from './exit-watch.ts';
import { probeMapping } from './mapping-probe.ts';
import { layoutOf, programDirectory, sandboxesDirectory, type Layout } from './layout.ts';
import type { Owners } from './rootfs.ts';
import { RuntimeProgram } from './runtime-program.ts';
import { makeStandbyRoot } from './standby-root.ts';
import { rangeStart, UidRanges } from './uid-ranges.ts';

export interface OciHostOptions {
  /** Holds everything that outlives this process; made when it is absent, passable (not readable) for others. */
  readonly stateDirectory: string;
  /** The cgroup of all sandboxes, in each hierarchy: `/drover`. */
  readonly cgroupParent: string;
  /** `runc` (default), `crun` or the path of another OCI runtime program. */
  readonly program?: string;
  readonly logger: Logger;
  readonly clock?: Clock;
  /** For tests of a host that cannot map owners. */
  readonly mounts?: Mounts;
  /** Shared with the images. Default: its own. */
  readonly foreign?: ForeignPaths;
}

/** The parts of a host that its containers use, and the ranges of uids that they get. */
export class OciHost {
  readonly stateDirectory: string;
  readonly logger: Logger;
  readonly clock: Clock;
  readonly program: RuntimeProgram;
  readonly cgroups: Cgroups;
  readonly mounts: Mounts;
  readonly foreign: ForeignPaths;
  readonly roots = new RootReplacer();
  readonly exits: ExitWatch;
  #prepared: Promise<UidRanges | undefined> | undefined;

  constructor(options: OciHostOptions) {
    this.stateDirectory = options.stateDirectory;
    this.logger = options.logger;
    this.clock = options.clock ?? systemClock;
    this.mounts = options.mounts ?? new Mounts();
    this.foreign = options.foreign ?? new ForeignPaths();
    this.program = new RuntimeProgram(options.program ?? 'runc', programDirectory(options.stateDirectory));
    this.cgroups = new Cgroups(options.cgroupParent);
    this.exits = new ExitWatch(this.clock);
  }

  layoutOf(id: SandboxId): Layout {
    return layoutOf(this.stateDirectory, id);
  }

  async recordOf(id: SandboxId): Promise<ContainerRecord | undefined> {
    return await readRecord(this.layoutOf(id).record);
  }

  /** Containers and standbys with a directory. */
  async list(): Promise<readonly SandboxId[]> {
    const names = await readdir(sandboxesDirectory(this.stateDirectory)).catch((error: unknown): string[] => {
      if (errnoOf(error) === 'ENOENT') return [];
      throw error;
    });
    return names.filter(isSandboxId);
  }

  /** Makes the directories, and the uid ranges where this host can map owners; once. */
  prepare(): Promise<UidRanges | undefined> {
    this.#prepared ??= this.#prepare();
    this.#prepared.catch(() => (this.#prepared = undefined));
    return this.#prepared;
  }

  /** @throws {DroverError} runtime-failed when the container has a range and this host can map no owners any more */
  async ownersOf(slot: number | undefined): Promise<Owners | undefined> {
    if (slot === undefined) return undefined;
    const ranges = await this.prepare();
    if (ranges === undefined) {
      throw new DroverError('runtime-failed', 'the sandbox was made with a user namespace, and this host has none any more');
    }
    return { start: rangeStart(slot), namespaceFd: await ranges.namespace(slot) };
  }

  /** Makes a container's directory with a range of uids, which is on disk before it owns anything. */
  async allocate(
    layout: Layout,
    record: ContainerRecord,
  ): Promise<{ readonly slot: number | undefined; readonly owners: Owners | undefined }> {
    const ranges = await this.prepare();
    const slot = ranges?.acquire();
    await mkdir(layout.directory, { mode: 0o710 });
    await writeRecord(layout.record, { ...record, slot });
    const owners = await this.ownersOf(slot);
    ranges?.warm();
    if (owners !== undefined) await chown(layout.directory, 0, owners.start);
    return { slot, owners };
  }

  async close(): Promise<void> {
    await this.roots.close();
    await (await this.#prepared)?.close();
    await this.cgroups.removeParent();
  }

  async #prepare(): Promise<UidRanges | undefined> {
    const sandboxes = sandboxesDirectory(this.stateDirectory);
    await makeDirectories(sandboxes);
    await mkdir(programDirectory(this.stateDirectory), { recursive: true, mode: 0o700 });
    // The program enters the root as the sandbox's own root, so it must be able to pass, and no more.
    for (const path of [this.stateDirectory, sandboxes]) await chmod(path, 0o711);
    await makeStandbyRoot(this.stateDirectory);
    const slots = await Promise.all((await this.list()).map(async (id) => (await this.recordOf(id))?.slot));
    const ranges = new UidRanges(slots.filter((slot) => slot !== undefined));
    const refusal = await probeMapping(this.mounts, ranges, this.stateDirectory);
    if (refusal === undefined) {
      ranges.warm();
      return ranges;
    }
    this.logger.warn({ reason: refusal }, 'sandboxes get no user namespace on this host');
    await ranges.close();
    return undefined;
  }
}
