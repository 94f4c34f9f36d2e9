import { chmod, chown, lchown, lstat, mkdir, readdir, realpath, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf } from '@drover/foundation';
import { isMounted, makeDisk, mountPoints } from '../../disks/index.ts';
import type { CreateRequest } from '../runtime.ts';
import { fillRoot } from './fill-root.ts';
import type { Layout } from './layout.ts';
import type { Mounts } from './mounts.ts';
import { together } from './together.ts';

/** How the owners of files map: all of a sandbox's ids lie in one range on the host. */
export interface Owners {
  readonly start: number;
  readonly namespaceFd: number;
}

/**
 * The sandbox's root: an overlay of the image's layers under a directory of its own, and more overlays for `submounts`.
 * Idempotent; with the writable directories there already, they are taken as they are.
 */
export async function mountRoot(mounts: Mounts, layout: Layout, request: CreateRequest, owners: Owners | undefined): Promise<void> {
  const uid = owners?.start ?? 0;
  await together(...[layout.mapped, layout.writable].map(async (path) => await mkdir(path, { recursive: true, mode: 0o700 })));
  if (request.limits.diskBytes > 0) {
    await makeDisk({ image: layout.diskImage, mountPoint: layout.writable }, request.limits.diskBytes, 'no-journal');
    await chmod(layout.writable, 0o700);
  }
  const fresh = await overlayOn(mounts, layout, 'root', layout.root, request.layers, owners, request.rootLayer);
  if (fresh) await fillRoot(layout.root, { hostname: request.hostname, address: request.network.address, uid });
  for (const [index, submount] of (request.submounts ?? []).entries()) {
    const target = await plainTarget(layout.root, submount.target);
    const own = join(layout.writable, `sub${index}`);
    await mkdirOnce(own, 0);
    await overlayOn(mounts, layout, `sub${index}`, target, [submount.lower], owners);
  }
}

/**
 * Unmounts everything under the sandbox's directory, deepest first.
 * @throws {DroverError} runtime-failed, when something stays: then nothing may be removed there, for it could be a volume's files
 */
export async function unmountAll(mounts: Mounts, layout: Layout): Promise<void> {
  const inside = (): string[] => mountPoints().filter((path) => path.startsWith(`${layout.directory}/`));
  let left = inside();
  let failure: unknown;
  // What lies over another mount of the same place is seen in the next round; nobody stacks more than a handful.
  for (let round = 0; left.length > 0 && round < mountsStacked; round++) {
    // Somebody else may have been quicker: what is left counts.
    failure = await mounts.unmount(left.toReversed()).then(
      () => undefined,
      (error: unknown) => error,
    );
    left = inside();
  }
  if (left[0] !== undefined) throw new DroverError('runtime-failed', `${left[0]} cannot be unmounted`, { cause: failure });
}

/** Mounts that one place may have over each other. */
const mountsStacked = 16;

/** Binds the request's directories where the runtime program finds them, owners mapped, so that volumes look the same in every sandbox. */
export async function mapVolumes(mounts: Mounts, layout: Layout, request: CreateRequest, owners: Owners | undefined): Promise<string[]> {
  const sources: string[] = [];
  for (const [index, mount] of request.mounts.entries()) {
    if (owners === undefined || mounts.idmap === undefined) {
      sources.push(mount.source);
      continue;
    }
    const target = join(layout.mapped, `volume${index}`);
    if ((await lstat(mount.source)).isDirectory()) await mkdir(target, { recursive: true });
    else await writeFile(target, '', { flag: 'a' });
    if (!isMounted(target)) mounts.idmap(mount.source, target, owners.namespaceFd, mount.readOnly ? 'read-only' : 'read-write');
    sources.push(target);
  }
  return sources;
}

/** @returns nothing has been written to it yet */
async function overlayOn(
  mounts: Mounts,
  layout: Layout,
  name: string,
  target: string,
  layers: readonly string[],
  owners: Owners | undefined,
  rootLayer?: string,
): Promise<boolean> {
  if (isMounted(target)) return false;
  const own = name === 'root' ? layout.writable : join(layout.writable, name);
  const upper = join(own, 'upper');
  const work = join(own, 'work');
  const source = rootLayer ?? layers.at(-1);
  const makeUpper = async (): Promise<boolean> => {
    const start = owners?.start ?? 0;
    const fresh = (await mkdirOnce(upper, start)) === 'new';
    // The merged directory shows its upper's owner and mode.
    if (fresh && source !== undefined) await copyOwner(source, upper, start);
    return fresh;
  };
  const makeWork = async (): Promise<void> => {
    await rm(work, { recursive: true, force: true });
    await mkdir(work, { mode: 0o700 });
  };
  const upperMade = makeUpper();
  await together(upperMade, makeWork(), ...(name === 'root' ? [mkdir(target, { recursive: true, mode: 0o755 })] : []));
  const mapped: string[] = [];
  try {
    const lower: string[] = [];
    // Overlayfs wants a lower directory; a scratch image has none.
    const given = layers.length > 0 ? layers : [await emptyLayer(layout)];
    for (const [index, layer] of given.entries()) {
      if (owners === undefined || mounts.idmap === undefined) {
        lower.push(layer);
        continue;
      }
      const point = join(layout.mapped, `${name}-${index}`);
      await mkdir(point, { recursive: true });
      mounts.idmap(layer, point, owners.namespaceFd, 'read-only');
      mapped.push(point);
      lower.push(point);
    }
    await mounts.overlay({ target, lower, upper, work });
    return await upperMade;
  } finally {
    // The overlay keeps clones of its own.
    for (const point of mapped) await mounts.detach(point);
  }
}

async function emptyLayer(layout: Layout): Promise<string> {
  const path = join(layout.directory, 'empty');
  await mkdir(path, { recursive: true });
  return path;
}

async function mkdirOnce(path: string, uid: number): Promise<'new' | 'old'> {
  try {
    await mkdir(path, { mode: 0o755 });
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return 'old';
    throw error;
  }
  await chown(path, uid, uid);
  return 'new';
}

async function copyOwner(source: string, upper: string, start: number): Promise<void> {
  const { uid, gid, mode } = await lstat(source);
  await chown(upper, start + uid, start + gid);
  await chmod(upper, mode & 0o7777);
}

/** The place of a submount in the root, which must not have become a link in an earlier life of the sandbox. @throws {DroverError} runtime-failed */
async function plainTarget(root: string, target: string): Promise<string> {
  const path = join(root, target);
  if ((await realpath(path)) === path && path.startsWith(`${root}/`)) return path;
  throw new DroverError('runtime-failed', `${target} is no plain directory in the sandbox any more`, {
    hint: 'the sandbox replaced a system directory by a link; remove it and create a new one',
  });
}

/** Takes what an earlier start said of its end, and gives the directory away with all that is in it. */
export async function emptyRunDirectory(directory: string, uid: number): Promise<void> {
  await rm(join(directory, 'exit.json'), { force: true, recursive: true });
  await giveAway(directory, uid);
}

/**
 * Makes directories in a root that nothing runs in yet, each after the one that it is in; those that are there stay as they are.
 * @returns false when one of them is something else, such as a link
 */
export async function makeMountPoints(root: string, paths: readonly string[], uid: number): Promise<boolean> {
  for (const path of paths) {
    const point = join(root, path);
    if ((await mkdirOnce(point, uid)) === 'old' && !(await lstat(point)).isDirectory()) return false;
  }
  return true;
}

/** The run directory and what the agent put there become the sandbox's root's. Links are changed, not followed. */
export async function giveAway(directory: string, uid: number): Promise<void> {
  const names = await readdir(directory);
  await Promise.all([lchown(directory, uid, uid), ...names.map((name) => lchown(join(directory, name), uid, uid))]);
  await chmod(directory, 0o700);
}
