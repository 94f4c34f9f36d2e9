import { closeSync, readFileSync } from 'node:fs';
import { DroverError } from '@drover/foundation';
import { openFfi } from '../../ffi.ts';
import { mountProgramMs, programOutputBytes } from '../../limits.ts';
import { runProgram } from '../../programs/index.ts';

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
  /** Takes a bind mount from `target`, lazily and at once. */
  detach(target: string): Promise<void>;
  /** Mounts a block device or image file with a filesystem on it. */
  loop(image: string, target: string): Promise<void>;
  /** Takes the uppermost mount from each target, lazily and in this order. */
  unmount(targets: readonly string[]): Promise<void>;
}

export interface OverlayOptions {
  readonly target: string;
  readonly lower: readonly string[];
  readonly upper: string;
  readonly work: string;
}

/** Source: include/uapi/linux/mount.h, fcntl.h; syscall numbers are the same on every architecture since 5.0 (asm-generic/unistd.h). */
const SYS_open_tree = 428n;
const SYS_move_mount = 429n;
const SYS_mount_setattr = 442n;
const SYS_fsopen = 430n;
const SYS_fsconfig = 431n;
const SYS_fsmount = 432n;
const AT_FDCWD = -100n;
const AT_EMPTY_PATH = 0x1000n;
const OPEN_TREE_CLONE = 1n;
const OPEN_TREE_CLOEXEC = 0o2000000n;
const MOVE_MOUNT_F_EMPTY_PATH = 4n;
const MOUNT_ATTR_RDONLY = 1n;
const MOUNT_ATTR_IDMAP = 0x00100000n;
const MNT_DETACH = 2;
const FSOPEN_CLOEXEC = 1n;
const FSMOUNT_CLOEXEC = 1n;
const FSCONFIG_SET_STRING = 1n;
const FSCONFIG_CMD_CREATE = 6n;

/** The best that this process has. */
export function openMounts(): Mounts {
  const native = openNative();
  return native ?? spawnedMounts;
}

type Syscall = (number: bigint, ...args: bigint[]) => bigint;

interface Native {
  readonly syscall: Syscall;
  readonly umount2: (target: bigint, flags: number) => number;
  readonly errno: () => number;
  readonly pointer: (buffer: Buffer) => bigint;
}

function loadNative(): Native | undefined {
  const ffi = openFfi();
  // mount(8) does it.
  if (ffi === undefined) return undefined;
  try {
    const { functions } = ffi.dlopen('libc.so.6', {
      syscall: { arguments: ['i64', 'i64', 'i64', 'i64', 'i64', 'i64'], return: 'i64' },
      umount2: { arguments: ['pointer', 'i32'], return: 'i32' },
      __errno_location: { arguments: [], return: 'pointer' },
    });
    const call = functions.syscall as Syscall;
    return {
      syscall: (number, ...args) => call(number, ...args, ...Array<bigint>(5 - args.length).fill(0n)),
      umount2: functions.umount2,
      errno: () => ffi.getInt32(functions.__errno_location()),
      pointer: (buffer) => ffi.getRawPointer(buffer),
    };
  } catch {
    // Another C library (musl) or an FFI whose interface changed: mount(8) does it.
    return undefined;
  }
}

const errnoNames: Record<number, string> = { 1: 'EPERM', 2: 'ENOENT', 12: 'ENOMEM', 16: 'EBUSY', 22: 'EINVAL', 28: 'ENOSPC', 38: 'ENOSYS' };

function openNative(): Mounts | undefined {
  const native = loadNative();
  if (native === undefined) return undefined;
  const keep: Buffer[] = [];
  const text = (value: string): bigint => {
    const buffer = Buffer.from(`${value}\0`);
    keep.push(buffer);
    return native.pointer(buffer);
  };
  const call = (what: string, number: bigint, ...args: bigint[]): number => {
    const result = native.syscall(number, ...args);
    if (result < 0n) {
      const errno = native.errno();
      throw new DroverError('runtime-failed', `${what}: ${errnoNames[errno] ?? `errno ${errno}`}`);
    }
    return Number(result);
  };
  /** Strings handed to the kernel must live until the call is over, and not longer. */
  const scope = <T>(body: () => T): T => {
    try {
      return body();
    } finally {
      keep.length = 0;
    }
  };
  const attach = (fd: number, target: string): void => {
    call(`mounting on ${target}`, SYS_move_mount, BigInt(fd), text(''), AT_FDCWD, text(target), MOVE_MOUNT_F_EMPTY_PATH);
  };
  return {
    kind: 'native',
    overlay: (options) =>
      Promise.try(() =>
        scope(() => {
          const context = call('opening overlayfs', SYS_fsopen, text('overlay'), FSOPEN_CLOEXEC);
          try {
            const set = (key: string, value: string): void => {
              call(`overlay ${key}=${value}`, SYS_fsconfig, BigInt(context), FSCONFIG_SET_STRING, text(key), text(value), 0n);
            };
            set('source', 'drover');
            // One call a layer, so that many layers do not run into the page that a mount's options must fit in.
            const top = options.lower.toReversed();
            if (appendableLayers()) for (const layer of top) set('lowerdir+', layer);
            else set('lowerdir', top.map(escapeLayer).join(':'));
            set('upperdir', options.upper);
            set('workdir', options.work);
            call('making the overlay', SYS_fsconfig, BigInt(context), FSCONFIG_CMD_CREATE, 0n, 0n, 0n);
            const mount = call('mounting the overlay', SYS_fsmount, BigInt(context), FSMOUNT_CLOEXEC, 0n);
            try {
              attach(mount, options.target);
            } finally {
              closeSync(mount);
            }
          } finally {
            closeSync(context);
          }
        }),
      ),
    idmap: (source, target, userNamespaceFd, access) => {
      scope(() => {
        const tree = call(`cloning ${source}`, SYS_open_tree, AT_FDCWD, text(source), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        try {
          // struct mount_attr { attr_set, attr_clr, propagation, userns_fd }, all u64.
          const attributes = Buffer.alloc(32);
          attributes.writeBigUInt64LE(access === 'read-only' ? MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY : MOUNT_ATTR_IDMAP, 0);
          attributes.writeBigUInt64LE(BigInt(userNamespaceFd), 24);
          keep.push(attributes);
          call(
            `mapping the owners of ${source}`,
            SYS_mount_setattr,
            BigInt(tree),
            text(''),
            AT_EMPTY_PATH,
            native.pointer(attributes),
            BigInt(attributes.length),
          );
          attach(tree, target);
        } finally {
          closeSync(tree);
        }
      });
    },
    detach: (target) =>
      Promise.try(() =>
        scope(() => {
          if (native.umount2(text(target), MNT_DETACH) === 0) return;
          const errno = native.errno();
          throw new DroverError('runtime-failed', `taking the mount from ${target}: ${errnoNames[errno] ?? `errno ${errno}`}`);
        }),
      ),
    loop: (image, target) => spawnedMounts.loop(image, target),
    // Taking an overlay away may write back its filesystem's dirty pages, which takes what it takes: never in this thread.
    unmount: (targets) => spawnedMounts.unmount(targets),
  };
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
  overlay: async (options) => {
    const paths = [...options.lower, options.upper, options.work];
    const odd = paths.find((path) => path.includes(','));
    if (odd !== undefined) throw new DroverError('runtime-failed', `mount(8) cannot take a path with a comma: ${odd}`);
    const lower = options.lower.toReversed().map(escapeLayer).join(':');
    const settings = `lowerdir=${lower},upperdir=${options.upper},workdir=${options.work}`;
    await command('mount', ['-t', 'overlay', 'drover', '-o', settings, options.target]);
  },
  detach: (target) => command('umount', ['-l', target]),
  loop: (image, target) => command('mount', ['-o', 'loop,nodev', image, target]),
  unmount: (targets) => command('umount', ['-l', '--', ...targets]),
};

async function command(program: string, args: readonly string[]): Promise<void> {
  const limits = { timeoutMs: mountProgramMs, maxOutputBytes: programOutputBytes };
  let said: string;
  try {
    const { code, stderr } = await runProgram(program, args, limits);
    if (code === 0) return;
    said = stderr.trim() || (code === null ? 'it was killed' : `it ended with ${code}`);
  } catch (error) {
    throw new DroverError('runtime-failed', `${program} cannot be started: ${String(error)}`, { cause: error });
  }
  throw new DroverError('runtime-failed', `${program} failed: ${said}`);
}

/** Where something is mounted, deepest last: /proc/self/mountinfo, fifth field, octal escapes undone (proc(5)). */
export function mountPoints(): string[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .flatMap((line) => line.split(' ')[4] ?? [])
    .map((path) => path.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))));
}

export function isMounted(path: string): boolean {
  return mountPoints().includes(path);
}
