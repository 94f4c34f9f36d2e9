import { closeSync, readFileSync } from 'node:fs';
import { DroverError } from '@drover/foundation';
import { mountProgram } from '../../disks/index.ts';
import { openSystemCalls } from './system-calls.ts';

/**
 * The mounts that the runtime makes on the host, in one place.
 *
 * Natively through node:ffi (no process per mount, and the only way to idmapped layers); where this Node has none,
 * through mount(8) and umount(8), which know no idmap here: `idmap` is then undefined.
 */
export interface Mounts {
  readonly kind: 'native' | 'spawned';
  /** Mounts an overlay on `target`. `lower`: lowest layer first. */
  overlay(options: OverlayOptions): Promise<void>;
  /** Binds a clone of `source`, whose files' owners go through the user namespace's mapping, on `target`. */
  readonly idmap: ((source: string, target: string, userNamespaceFd: number, access: 'read-only' | 'read-write') => void) | undefined;
  /** Mounts that are attached nowhere yet, as descriptors, which are the caller's; `attributes`: MOUNT_ATTR_… */
  readonly detached:
    | {
        /** Of `source` and all that is mounted below it; nothing that is mounted in one is seen in the other. */
        clone(source: string, attributes: bigint): number;
        /** `mode`: octal digits. */
        tmpfs(
          options: { readonly bytes: number; readonly inodes: number; readonly mode: string; readonly uid: number },
          attributes: bigint,
        ): number;
      }
    | undefined;
  /** Takes a bind mount from `target`, lazily and at once. */
  detach(target: string): Promise<void>;
  /** Takes the uppermost mount from each target, lazily and in this order. */
  unmount(targets: readonly string[]): Promise<void>;
}

/** Mounted nodev: an image may have device files, which root in the sandbox owns; the OCI runtime's own rules let it open /dev/net/tun. */
export interface OverlayOptions {
  readonly target: string;
  readonly lower: readonly string[];
  readonly upper: string;
  readonly work: string;
}

/** Source: include/uapi/linux/mount.h, fcntl.h; syscall numbers are the same on every architecture since 5.0 (asm-generic/unistd.h). */
const SYS_open_tree = 428n;
export const SYS_move_mount = 429n;
const SYS_mount_setattr = 442n;
const SYS_fsopen = 430n;
const SYS_fsconfig = 431n;
const SYS_fsmount = 432n;
export const AT_FDCWD = -100n;
const AT_EMPTY_PATH = 0x1000n;
const AT_RECURSIVE = 0x8000n;
const OPEN_TREE_CLONE = 1n;
const OPEN_TREE_CLOEXEC = 0o2000000n;
export const MOVE_MOUNT_F_EMPTY_PATH = 4n;
export const MOVE_MOUNT_T_SYMLINKS = 0x10n;
export const MOUNT_ATTR_RDONLY = 1n;
export const MOUNT_ATTR_NOSUID = 2n;
export const MOUNT_ATTR_NODEV = 4n;
export const MOUNT_ATTR_NOEXEC = 8n;
const MOUNT_ATTR_IDMAP = 0x00100000n;
const MS_PRIVATE = 1n << 18n;
export const MNT_DETACH = 2;
const FSOPEN_CLOEXEC = 1n;
const FSMOUNT_CLOEXEC = 1n;
const FSCONFIG_SET_STRING = 1n;
const FSCONFIG_CMD_CREATE = 6n;

/** The best that this process has. */
export function openMounts(): Mounts {
  const native = openNative();
  return native ?? spawnedMounts;
}

function openNative(): Mounts | undefined {
  const calls = openSystemCalls();
  // mount(8) does it.
  if (calls === undefined) return undefined;
  const { call } = calls;
  const attach = (fd: number, target: string): void => {
    call(`mounting on ${target}`, SYS_move_mount, BigInt(fd), '', AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH);
  };
  const cloneOf = (source: string, flags = 0n): number =>
    call(`cloning ${source}`, SYS_open_tree, AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags);
  const setAttributes = (what: string, tree: number, flags: bigint, attributes: Partial<MountAttributes>): void => {
    // struct mount_attr, all u64.
    const bytes = Buffer.alloc(32);
    const { set = 0n, propagation = 0n, userNamespaceFd = 0 } = attributes;
    for (const [index, value] of [set, 0n, propagation, BigInt(userNamespaceFd)].entries()) bytes.writeBigUInt64LE(value, index * 8);
    call(what, SYS_mount_setattr, BigInt(tree), '', AT_EMPTY_PATH | flags, bytes, BigInt(bytes.length));
  };
  /** A mount of a new filesystem, attached nowhere. */
  const mountOf = (type: string, settings: readonly (readonly [string, string])[], attributes = 0n): number => {
    const context = call(`opening ${type}`, SYS_fsopen, type, FSOPEN_CLOEXEC);
    try {
      for (const [key, value] of settings)
        call(`${type} ${key}=${value}`, SYS_fsconfig, BigInt(context), FSCONFIG_SET_STRING, key, value, 0n);
      call(`making the ${type}`, SYS_fsconfig, BigInt(context), FSCONFIG_CMD_CREATE, 0n, 0n, 0n);
      return call(`mounting the ${type}`, SYS_fsmount, BigInt(context), FSMOUNT_CLOEXEC, attributes);
    } finally {
      closeSync(context);
    }
  };
  return {
    kind: 'native',
    overlay: (options) =>
      Promise.try(() => {
        // One setting a layer, so that many layers do not run into the page that a mount's options must fit in.
        const top = options.lower.toReversed();
        const layers: (readonly [string, string])[] = appendableLayers()
          ? top.map((layer) => ['lowerdir+', layer])
          : [['lowerdir', top.map(escapeLayer).join(':')]];
        const settings = [['source', 'drover'], ...layers, ['upperdir', options.upper], ['workdir', options.work]] as const;
        const mount = mountOf('overlay', settings, MOUNT_ATTR_NODEV);
        try {
          attach(mount, options.target);
        } finally {
          closeSync(mount);
        }
      }),
    idmap: (source, target, userNamespaceFd, access) => {
      const tree = cloneOf(source);
      try {
        const set = access === 'read-only' ? MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY : MOUNT_ATTR_IDMAP;
        setAttributes(`mapping the owners of ${source}`, tree, 0n, { set, userNamespaceFd });
        attach(tree, target);
      } finally {
        closeSync(tree);
      }
    },
    detached: {
      clone: (source, attributes) => {
        const tree = cloneOf(source, AT_RECURSIVE);
        try {
          setAttributes(`setting up a clone of ${source}`, tree, AT_RECURSIVE, { set: attributes, propagation: MS_PRIVATE });
          return tree;
        } catch (error) {
          closeSync(tree);
          throw error;
        }
      },
      tmpfs: ({ bytes, inodes, mode, uid }, attributes) =>
        mountOf(
          'tmpfs',
          [
            ['source', 'drover'],
            ['size', String(bytes)],
            ['nr_inodes', String(inodes)],
            ['mode', mode],
            ['uid', String(uid)],
            ['gid', String(uid)],
          ],
          attributes,
        ),
    },
    detach: (target) => Promise.try(() => calls.unmount(`taking the mount from ${target}`, target, MNT_DETACH)),
    // Taking an overlay away may write back its filesystem's dirty pages, which takes what it takes: never in this thread.
    unmount: (targets) => spawnedMounts.unmount(targets),
  };
}

/** Source: struct mount_attr of include/uapi/linux/mount.h, without what is cleared. */
interface MountAttributes {
  readonly set: bigint;
  readonly propagation: bigint;
  readonly userNamespaceFd: number;
}

/** `lowerdir+` came with Linux 6.8 (6.5 had it with fewer layers). */
function appendableLayers(): boolean {
  const [major = 0, minor = 0] = readFileSync('/proc/sys/kernel/osrelease', 'utf8').split('.').map(Number);
  return major > 6 || (major === 6 && minor >= 8);
}

/** In a list, a colon or backslash of a path is written with a backslash (Documentation/filesystems/overlayfs.rst). */
function escapeLayer(path: string): string {
  return path.replace(/[\\:]/g, (c) => `\\${c}`);
}

/** Without node:ffi. mount(8) takes options as one list, so no path may have a comma. */
export const spawnedMounts: Mounts = {
  kind: 'spawned',
  idmap: undefined,
  detached: undefined,
  overlay: async (options) => {
    const paths = [...options.lower, options.upper, options.work];
    const odd = paths.find((path) => path.includes(','));
    if (odd !== undefined) throw new DroverError('runtime-failed', `mount(8) cannot take a path with a comma: ${odd}`);
    const lower = options.lower.toReversed().map(escapeLayer).join(':');
    const settings = `nodev,lowerdir=${lower},upperdir=${options.upper},workdir=${options.work}`;
    await mountProgram('mount', ['-t', 'overlay', 'drover', '-o', settings, options.target]);
  },
  detach: (target) => mountProgram('umount', ['-l', target]),
  unmount: (targets) => mountProgram('umount', ['-l', '--', ...targets]),
};
