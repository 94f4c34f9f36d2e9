import { chmod, chown, lchown, lstat, mkdir, readdir, realpath, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, removeTree } from '@drover/foundation';
import { isMounted, mountPoints, type Mounts } from '@drover/linux';
import { makeDisk } from '../../disks/index.ts';
import type { ForeignPaths, ForeignStatus } from '../../foreign/index.ts';
import { settled } from '../../concurrency.ts';
import type { ContainerRequest } from './container.ts';
import { fillRoot } from './fill-root.ts';
import type { Layout } from './layout.ts';

/** The mapping of file owners: a sandbox's ids are one range on the host. */
export interface Owners {
  readonly start: number;
  readonly namespaceFd: number;
}

/** The parts of a host that mount a sandbox's root. */
export interface MountingHost {
  readonly mounts: Mounts;
  readonly foreign: ForeignPaths;
  readonly owners: Owners | undefined;
}

/**
 * Mounts the sandbox's root: an overlay of the image's layers under the sandbox's writable directory, and one for each submount. Idempotent;
 * existing writable directories are used as they are.
 */
export async function mountRoot(host: MountingHost, layout: Layout, request: ContainerRequest): Promise<void> {
  const { owners, foreign } = host;
  const uid = owners?.start ?? 0;
  await settled(...[layout.mapped, layout.writable].map(async (path) => await mkdir(path, { recursive: true, mode: 0o700 })));
  if (request.limits.diskBytes > 0) {
    await makeDisk({ image: layout.diskImage, mountPoint: layout.writable }, request.limits.diskBytes, 'no-journal');
    await chmod(layout.writable, 0o700);
  }
  const fresh = await overlayOn(host, layout, 'root', layout.root, request);
  const fill = async (): Promise<void> =>
    await fillRoot(layout.root, { hostname: request.hostname, address: request.network.address, uid });
  if (fresh) await (request.foreignLayer === undefined ? fill() : foreign.inPool('root', request.foreignLayer, fill));
  for (const [index, submount] of request.submounts.entries()) {
    const target = await plainTarget(layout.root, submount.target);
    const own = join(layout.writable, `sub${index}`);
    await mkdirOnce(own, 0);
    await overlayOn(host, layout, `sub${index}`, target, { layers: [submount.lower] });
  }
}

/**
 * Unmounts everything under the sandbox's directory, deepest first.
 * @throws {DroverError} runtime-failed when a mount stays: then nothing below may be removed, since it could be a volume's files
 */
export async function unmountAll(mounts: Mounts, layout: Layout): Promise<void> {
  const inside = (): string[] => mountPoints().filter((path) => path.startsWith(`${layout.directory}/`));
  let left = inside();
  let failure: unknown;
  // A mount under another mount of the same place appears in the next round.
  for (let round = 0; left.length > 0 && round < mountsStacked; round++) {
    // Another process may have unmounted some: the remaining mounts count.
    failure = await mounts.unmount(left.toReversed()).then(
      () => undefined,
      (error: unknown) => error,
    );
    left = inside();
  }
  if (left[0] !== undefined) throw new DroverError('runtime-failed', `${left[0]} cannot be unmounted`, { cause: failure });
}

/** Mounts over each other at one place. */
const mountsStacked = 16;

export interface MappedVolume {
  /** For the runtime program, or for the mounts of a standby. */
  readonly source: string;
  readonly kind: ForeignStatus['kind'];
}

/**
 * Binds the request's directories into the sandbox's directory, with owners mapped, so that volumes look the same in every sandbox. They may be on
 * a file system that hangs, so this process does not touch them.
 * @throws {DroverError} failed-precondition, unavailable, runtime-failed
 */
export async function mapVolumes(host: MountingHost, layout: Layout, request: ContainerRequest): Promise<MappedVolume[]> {
  const { mounts, foreign, owners } = host;
  const volumes: MappedVolume[] = [];
  for (const [index, mount] of request.mounts.entries()) {
    const status = await foreign.status(mount.source);
    if (status === undefined) {
      throw new DroverError('failed-precondition', `there is no ${mount.source} on the host to be mounted on ${mount.target}`, {
        hint: 'create the directory on the host, or name another',
      });
    }
    const target = join(layout.mapped, `volume${index}`);
    if (owners === undefined) await bindOnce(foreign, mount.source, target, status.kind);
    else if (!isMounted(target)) {
      // Mapped from a bind mount, without access to the file system. `target` is a mount only when its owners are mapped: an agent that is killed
      // in between leaves none that looks complete.
      const plain = `${target}-plain`;
      await bindOnce(foreign, mount.source, plain, status.kind);
      await makePlace(target, status.kind);
      mounts.mapOwners(plain, target, owners.namespaceFd, mount.readOnly ? 'read-only' : 'read-write');
      mounts.detach(plain);
    }
    volumes.push({ source: target, kind: status.kind });
  }
  return volumes;
}

async function bindOnce(foreign: ForeignPaths, source: string, target: string, kind: ForeignStatus['kind']): Promise<void> {
  if (isMounted(target)) return;
  await makePlace(target, kind);
  await foreign.bind(source, target);
}

/** Makes a mount point. */
async function makePlace(path: string, kind: ForeignStatus['kind']): Promise<void> {
  if (kind === 'directory') await mkdir(path, { recursive: true });
  else await writeFile(path, '', { flag: 'a' });
}

/** @returns whether the overlay is new */
async function overlayOn(
  { mounts, foreign, owners }: MountingHost,
  layout: Layout,
  name: string,
  target: string,
  { layers, rootLayer, foreignLayer }: Pick<ContainerRequest, 'layers' | 'rootLayer' | 'foreignLayer'>,
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
    if (fresh && source !== undefined) await copyOwner(await ownerOf(source, source === foreignLayer ? foreign : undefined), upper, start);
    return fresh;
  };
  const makeWork = async (): Promise<void> => {
    await removeTree(work);
    await mkdir(work, { mode: 0o700 });
  };
  const upperMade = makeUpper();
  await settled(upperMade, makeWork(), ...(name === 'root' ? [mkdir(target, { recursive: true, mode: 0o755 })] : []));
  const mapped: string[] = [];
  try {
    const lower: string[] = [];
    // Overlayfs requires a lower directory; a scratch image has none.
    const given = layers.length > 0 ? layers : [await emptyLayer(layout)];
    for (const [index, layer] of given.entries()) {
      const isForeign = layer === foreignLayer;
      if (!isForeign && owners === undefined) {
        lower.push(layer);
        continue;
      }
      const point = join(layout.mapped, `${name}-${index}`);
      await mkdir(point, { recursive: true });
      if (isForeign) {
        await foreign.bind(layer, point);
        mapped.push(point);
      }
      if (owners !== undefined) {
        mounts.mapOwners(isForeign ? point : layer, point, owners.namespaceFd, 'read-only');
        mapped.push(point);
      }
      lower.push(point);
    }
    // Mounting an overlay reads its layers, which may hang.
    const overlay = { target, lower, upper, work };
    if (foreignLayer === undefined) mounts.overlay(overlay);
    else await mounts.overlayByProgram(overlay);
    return await upperMade;
  } finally {
    // The overlay holds clones.
    for (const point of mapped) mounts.detach(point);
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

type Owner = Pick<ForeignStatus, 'uid' | 'gid' | 'mode'>;

async function ownerOf(path: string, foreign: ForeignPaths | undefined): Promise<Owner> {
  if (foreign === undefined) return await lstat(path);
  const status = await foreign.status(path);
  if (status !== undefined) return status;
  throw new DroverError('image-not-found', `there is no directory ${path} on the host any more`, { hint: 'name a root file system' });
}

async function copyOwner({ uid, gid, mode }: Owner, upper: string, start: number): Promise<void> {
  await chown(upper, start + uid, start + gid);
  await chmod(upper, mode & 0o7777);
}

/** The place of a submount, which must not have become a link in an earlier run of the sandbox. @throws {DroverError} runtime-failed */
async function plainTarget(root: string, target: string): Promise<string> {
  const path = join(root, target);
  if ((await realpath(path)) === path && path.startsWith(`${root}/`)) return path;
  throw new DroverError('runtime-failed', `${target} is no plain directory in the sandbox any more`, {
    hint: 'the sandbox replaced a system directory by a link; remove it and create a new one',
  });
}

/** Removes the exit record of an earlier run, and gives the directory with its files to the sandbox's root. */
export async function emptyRunDirectory(directory: string, uid: number): Promise<void> {
  await removeTree(join(directory, 'exit.json'));
  await giveAway(directory, uid);
}

/**
 * Makes directories, parents first, in a root in which nothing runs yet; existing ones stay as they are.
 * @returns false when one of the paths is not a directory, such as a link
 */
export async function makeMountPoints(root: string, paths: readonly string[], uid: number): Promise<boolean> {
  for (const path of paths) {
    const point = join(root, path);
    if ((await mkdirOnce(point, uid)) === 'old' && !(await lstat(point)).isDirectory()) return false;
  }
  return true;
}

/** Gives the run directory with its files to the sandbox's root. Links are changed, not followed. */
export async function giveAway(directory: string, uid: number): Promise<void> {
  const names = await readdir(directory);
  await Promise.all([lchown(directory, uid, uid), ...names.map((name) => lchown(join(directory, name), uid, uid))]);
  await chmod(directory, 0o700);
}
