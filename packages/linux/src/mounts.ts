import { closeSync } from 'node:fs';
import { DroverError } from '@drover/foundation';
import { mountProgramMs } from './limits.ts';
import { isKernelSince, mountTable } from './proc.ts';
import { runProgram } from './run-program.ts';
import { detachMount, syscall } from './syscall.ts';

export interface OverlayOptions {
  readonly target: string;
  /** The lowest layer first. */
  readonly lower: readonly string[];
  readonly upper: string;
  readonly work: string;
}

/** Options of mount(8). */
export type MountOption = 'ro' | 'nosuid' | 'nodev' | 'noexec';

export interface TmpfsOptions {
  readonly bytes: number;
  readonly inodes: number;
  /** Octal digits. */
  readonly mode: string;
  /** Its owner's uid and gid. */
  readonly uid: number;
}

/** Source: include/uapi/linux/mount.h, fcntl.h; these numbers are the same on every architecture (asm-generic/unistd.h). */
const SYS_open_tree = 428n;
const SYS_move_mount = 429n;
const SYS_fsopen = 430n;
const SYS_fsconfig = 431n;
const SYS_fsmount = 432n;
const SYS_mount_setattr = 442n;
const AT_FDCWD = -100n;
const AT_EMPTY_PATH = 0x1000n;
const AT_RECURSIVE = 0x8000n;
const OPEN_TREE_CLONE = 1n;
const OPEN_TREE_CLOEXEC = 0o2000000n;
const MOVE_MOUNT_F_EMPTY_PATH = 4n;
const MOVE_MOUNT_T_SYMLINKS = 0x10n;
const MOUNT_ATTR: Readonly<Record<MountOption, bigint>> = { ro: 1n, nosuid: 2n, nodev: 4n, noexec: 8n };
const MOUNT_ATTR_IDMAP = 0x00100000n;
const MS_PRIVATE = 1n << 18n;
const FSOPEN_CLOEXEC = 1n;
const FSMOUNT_CLOEXEC = 1n;
const FSCONFIG_SET_STRING = 1n;
const FSCONFIG_CMD_CREATE = 6n;

/**
 * The mounts of this process's mount namespace. Calls that return in microseconds are made in this thread; what may wait for a disk or a file
 * system is done by mount(8) and umount(8). Every method throws runtime-failed.
 */
export class Mounts {
  /**
   * Mounts an overlay, nodev: an image may contain device files, which the sandbox's root owns, and the OCI runtime's rules let it open
   * /dev/net/tun.
   */
  overlay({ target, lower, upper, work }: OverlayOptions): void {
    // A setting for each layer: all options of a mount together must fit a page. `lowerdir+` came with Linux 6.8 (6.5 had fewer layers).
    const layers: (readonly [string, string])[] = isKernelSince(6, 8)
      ? lower.toReversed().map((layer) => ['lowerdir+', layer])
      : [['lowerdir', layerList(lower)]];
    const mount = newMount('overlay', [['source', 'drover'], ...layers, ['upperdir', upper], ['workdir', work]], ['nodev']);
    try {
      attachMount(mount, target);
    } finally {
      closeSync(mount);
    }
  }

  /** The same by mount(8), for layers on a file system that may hang: making an overlay looks into its layers. */
  async overlayByProgram({ target, lower, upper, work }: OverlayOptions): Promise<void> {
    const comma = [...lower, upper, work].find((path) => path.includes(','));
    if (comma !== undefined) throw new DroverError('runtime-failed', `mount(8) cannot take a path with a comma: ${comma}`);
    const settings = `nodev,lowerdir=${layerList(lower)},upperdir=${upper},workdir=${work}`;
    await mountProgram('mount', ['-t', 'overlay', 'drover', '-o', settings, target]);
  }

  /** Mounts a clone of `source` on `target` whose owners are mapped by a user namespace. Fails where the kernel or the file system cannot. */
  mapOwners(source: string, target: string, userNamespaceFd: number, access: 'read-only' | 'read-write'): void {
    const tree = cloneTree(source, 0n);
    try {
      const set = MOUNT_ATTR_IDMAP | (access === 'read-only' ? MOUNT_ATTR.ro : 0n);
      setAttributes(`mapping the owners of ${source}`, tree, 0n, { set, userNamespaceFd });
      attachMount(tree, target);
    } finally {
      closeSync(tree);
    }
  }

  /**
   * Clones `source` and all mounts below it. Later mounts in one are not visible in the other.
   * @returns a descriptor of the clone, which is not attached anywhere; the caller closes it
   */
  clone(source: string, options: readonly MountOption[]): number {
    const tree = cloneTree(source, AT_RECURSIVE);
    try {
      setAttributes(`setting up a clone of ${source}`, tree, AT_RECURSIVE, { set: attributesOf(options), propagation: MS_PRIVATE });
      return tree;
    } catch (error) {
      closeSync(tree);
      throw error;
    }
  }

  /** @returns a descriptor of a new tmpfs, which is not attached anywhere; the caller closes it */
  tmpfs({ bytes, inodes, mode, uid }: TmpfsOptions, options: readonly MountOption[]): number {
    const settings = { source: 'drover', size: bytes, nr_inodes: inodes, mode, uid, gid: uid };
    return newMount(
      'tmpfs',
      Object.entries(settings).map(([key, value]) => [key, String(value)]),
      options,
    );
  }

  /** Removes a bind mount from `target`. */
  detach(target: string): void {
    detachMount(`removing the mount of ${target}`, target);
  }

  /** Removes the topmost mount of each target, in this order. By umount(8): removing an overlay may write back dirty pages. */
  async unmount(targets: readonly string[]): Promise<void> {
    await mountProgram('umount', ['-l', '--', ...targets]);
  }
}

/** Runs mount(8) or umount(8). @throws {DroverError} runtime-failed */
export async function mountProgram(program: 'mount' | 'umount', args: readonly string[]): Promise<void> {
  let reason: string;
  try {
    const { code, stderr } = await runProgram(program, args, { timeoutMs: mountProgramMs });
    if (code === 0) return;
    reason = stderr.trim() || (code === null ? 'it was killed' : `it ended with ${code}`);
  } catch (error) {
    throw new DroverError('runtime-failed', `${program} cannot be started: ${String(error)}`, { cause: error });
  }
  throw new DroverError('runtime-failed', `${program} failed: ${reason}`);
}

/** Where file systems are mounted, in the order in which they were. */
export function mountPoints(): readonly string[] {
  return mountTable().map(({ target }) => target);
}

export function isMounted(path: string): boolean {
  return mountPoints().includes(path);
}

/** Attaches a mount that is attached nowhere. @param links whether a symbolic link at `target` is followed */
export function attachMount(mount: number, target: string, links: 'follow' | 'refuse' = 'refuse'): void {
  const flags = MOVE_MOUNT_F_EMPTY_PATH | (links === 'follow' ? MOVE_MOUNT_T_SYMLINKS : 0n);
  syscall(`mounting on ${target}`, SYS_move_mount, BigInt(mount), '', AT_FDCWD, target, flags);
}

/** Moves a mount, with all mounts below it. */
export function moveMount(from: string, to: string): void {
  syscall(`moving ${from}`, SYS_move_mount, AT_FDCWD, from, AT_FDCWD, to, 0n);
}

function cloneTree(source: string, flags: bigint): number {
  return syscall(`cloning ${source}`, SYS_open_tree, AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags);
}

/** A mount of a new file system that is attached nowhere. */
function newMount(type: string, settings: readonly (readonly [string, string])[], options: readonly MountOption[]): number {
  const context = syscall(`opening ${type}`, SYS_fsopen, type, FSOPEN_CLOEXEC);
  try {
    for (const [key, value] of settings)
      syscall(`${type} ${key}=${value}`, SYS_fsconfig, BigInt(context), FSCONFIG_SET_STRING, key, value, 0n);
    syscall(`creating the ${type}`, SYS_fsconfig, BigInt(context), FSCONFIG_CMD_CREATE, 0n, 0n, 0n);
    return syscall(`mounting the ${type}`, SYS_fsmount, BigInt(context), FSMOUNT_CLOEXEC, attributesOf(options));
  } finally {
    closeSync(context);
  }
}

interface MountAttributes {
  readonly set: bigint;
  readonly propagation?: bigint;
  readonly userNamespaceFd?: number;
}

function setAttributes(action: string, tree: number, flags: bigint, attributes: MountAttributes): void {
  const { set, propagation = 0n, userNamespaceFd = 0 } = attributes;
  // struct mount_attr: attr_set, attr_clr, propagation and userns_fd, 64 bits each.
  const bytes = Buffer.alloc(32);
  for (const [index, value] of [set, 0n, propagation, BigInt(userNamespaceFd)].entries()) bytes.writeBigUInt64LE(value, index * 8);
  syscall(action, SYS_mount_setattr, BigInt(tree), '', AT_EMPTY_PATH | flags, bytes, BigInt(bytes.length));
}

function attributesOf(options: readonly MountOption[]): bigint {
  return options.reduce((flags, option) => flags | MOUNT_ATTR[option], 0n);
}

/** In a list of layers, a colon or backslash of a path has a backslash in front (Documentation/filesystems/overlayfs.rst). */
function layerList(lower: readonly string[]): string {
  return lower
    .toReversed()
    .map((layer) => layer.replace(/[\\:]/g, (c) => `\\${c}`))
    .join(':');
}
