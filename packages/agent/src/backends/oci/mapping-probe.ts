import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { mountPoints, type Mounts } from '@drover/linux';
import type { UidRanges } from './uid-ranges.ts';

/** Tries an overlay over a layer with mapped owners, as each create does. Returns the reason of a failure; undefined: it works. */
export async function probeMapping(mounts: Mounts, ranges: UidRanges, stateDirectory: string): Promise<string | undefined> {
  const directory = await mkdtemp(join(stateDirectory, probePrefix));
  const paths = ['layer', 'mapped', 'upper', 'work', 'root'].map((name) => join(directory, name));
  const [layer = '', mapped = '', upper = '', work = '', root = ''] = paths;
  const mounted: string[] = [];
  try {
    await Promise.all(paths.map((path) => mkdir(path)));
    const slot = ranges.acquire();
    ranges.release(slot);
    mounts.mapOwners(layer, mapped, await ranges.namespace(slot), 'read-only');
    mounted.push(mapped);
    mounts.overlay({ target: root, lower: [mapped], upper, work });
    mounted.push(root);
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    for (const path of mounted) mounts.detach(path);
    await rm(directory, { recursive: true, force: true });
  }
}

const probePrefix = 'probe-';

/** Removes the remains of probes whose agents were killed. */
export async function removeProbes(mounts: Mounts, stateDirectory: string): Promise<void> {
  const names = await readdir(stateDirectory).catch((): string[] => []);
  for (const name of names.filter((entry) => entry.startsWith(probePrefix))) {
    const directory = join(stateDirectory, name);
    const mounted = mountPoints().filter((path) => path.startsWith(`${directory}/`));
    if (mounted.length > 0) await mounts.unmount(mounted.toReversed());
    await rm(directory, { recursive: true, force: true });
  }
}
