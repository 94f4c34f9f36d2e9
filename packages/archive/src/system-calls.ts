import { spawnSync } from 'node:child_process';
import { fstatSync, lutimesSync } from 'node:fs';
import { openFfi } from './ffi.ts';
import { maxAttributeBytes } from './limits.ts';
import { fsPath } from './names.ts';

/**
 * The system calls that Node lacks and trees of files need: mknod(2), extended attributes, syncfs(2), lseek(2), utimensat(2).
 * They go through `node:ffi`; where that is missing or refused, through the tools mknod(1), setfattr(1), getfattr(1) and sync(1), and without
 * holes to be seen.
 * Paths are byte strings (see names.ts).
 */
export interface SystemCalls {
  /** @throws {Error} with `code` as fs functions have it */
  makeNode(path: string, type: NodeType, major: number, minor: number): void;
  /** Sets an extended attribute; a symbolic link is not followed. @throws {Error} with `code` */
  setAttribute(path: string, name: string, value: Buffer): void;
  /** The extended attributes of a path; a symbolic link is not followed. @throws {Error} with `code` */
  attributes(path: string): ReadonlyMap<string, Buffer>;
  /** Where the next data at or behind `offset` begins; undefined when only a hole follows. */
  nextData(fd: number, offset: number): number | undefined;
  /** Where the next hole at or behind `offset` begins: at the latest, at the file's end. Undefined where holes cannot be seen. */
  nextHole(fd: number, offset: number): number | undefined;
  /** Sets the time of modification, and the time of access to the same; a symbolic link is not followed. @throws {Error} with `code` */
  setTime(path: string, mtimeNs: bigint): void;
  /** Writes back everything of the file system that `fd` lies in. */
  syncFileSystem(fd: number): void;
}

export type NodeType = 'character' | 'block' | 'fifo';

/** inode(7) */
const fileTypes: Record<NodeType, number> = { character: 0o020000, block: 0o060000, fifo: 0o010000 };
const typeLetters: Record<NodeType, string> = { character: 'c', block: 'b', fifo: 'p' };

/** errno(3) of Linux on every architecture that Node runs on. */
const errnoNames: Record<number, string> = {
  1: 'EPERM',
  2: 'ENOENT',
  5: 'EIO',
  6: 'ENXIO',
  7: 'E2BIG',
  12: 'ENOMEM',
  13: 'EACCES',
  17: 'EEXIST',
  20: 'ENOTDIR',
  22: 'EINVAL',
  28: 'ENOSPC',
  30: 'EROFS',
  34: 'ERANGE',
  36: 'ENAMETOOLONG',
  38: 'ENOSYS',
  40: 'ELOOP',
  61: 'ENODATA',
  95: 'ENOTSUP',
  122: 'EDQUOT',
};

/** gnu_dev_makedev of the C library: 12 + 20 bits, spread over 64. */
export function deviceNumber(major: number, minor: number): bigint {
  const a = BigInt(major);
  const b = BigInt(minor);
  return ((a & 0xfffff000n) << 32n) | ((a & 0xfffn) << 8n) | ((b & 0xffffff00n) << 12n) | (b & 0xffn);
}

/** Source: include/uapi/linux/fs.h, include/uapi/linux/fcntl.h. */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const AT_FDCWD = -100;
const AT_SYMLINK_NOFOLLOW = 0x100;

/** struct timespec[2]: seconds and nanoseconds, 64 bits each. */
function twoTimes(timeNs: bigint): Buffer {
  const times = Buffer.alloc(32);
  const nanoseconds = ((timeNs % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n;
  for (const at of [0, 16]) {
    times.writeBigInt64LE((timeNs - nanoseconds) / 1_000_000_000n, at);
    times.writeBigInt64LE(nanoseconds, at + 8);
  }
  return times;
}

let chosen: SystemCalls | undefined;

/** The best that this process has. */
export function systemCalls(): SystemCalls {
  chosen ??= viaFfi() ?? viaTools;
  return chosen;
}

const terminated = (text: string): Buffer => Buffer.from(`${text}\0`, 'latin1');

function failure(call: string, path: string, errno: number): Error {
  const code = errnoNames[errno] ?? `E${errno}`;
  return Object.assign(new Error(`${code}: ${call} ${JSON.stringify(path)}`), { code, errno: -errno, syscall: call });
}

/** Undefined where this Node has no FFI, or its C library lacks a symbol. */
export function viaFfi(): SystemCalls | undefined {
  try {
    const ffi = openFfi();
    if (ffi === undefined) return undefined;
    const { functions } = ffi.dlopen(null, {
      mknod: { arguments: ['buffer', 'u32', 'u64'], return: 'i32' },
      lsetxattr: { arguments: ['buffer', 'buffer', 'buffer', 'u64', 'i32'], return: 'i32' },
      llistxattr: { arguments: ['buffer', 'buffer', 'u64'], return: 'i64' },
      lgetxattr: { arguments: ['buffer', 'buffer', 'buffer', 'u64'], return: 'i64' },
      lseek: { arguments: ['i32', 'i64', 'i32'], return: 'i64' },
      utimensat: { arguments: ['i32', 'buffer', 'buffer', 'i32'], return: 'i32' },
      syncfs: { arguments: ['i32'], return: 'i32' },
      __errno_location: { arguments: [], return: 'pointer' },
    });
    const errno = (): number => ffi.getInt32(functions.__errno_location());
    const scratch = Buffer.alloc(maxAttributeBytes);
    const read = (call: string, path: string, size: bigint): Buffer => {
      if (size < 0n) throw failure(call, path, errno());
      return Buffer.from(scratch.subarray(0, Number(size)));
    };
    return {
      makeNode(path, type, major, minor) {
        // The mode is 0 until chmod, so that the umask does not matter.
        if (functions.mknod(terminated(path), fileTypes[type], deviceNumber(major, minor)) !== 0) throw failure('mknod', path, errno());
      },
      setAttribute(path, name, value) {
        if (functions.lsetxattr(terminated(path), terminated(name), value, BigInt(value.length), 0) !== 0) {
          throw failure('lsetxattr', path, errno());
        }
      },
      attributes(path) {
        const room = BigInt(scratch.length);
        const names = read('llistxattr', path, functions.llistxattr(terminated(path), scratch, room))
          .toString('latin1')
          .split('\0');
        return new Map(
          names
            .filter((name) => name !== '')
            .map((name) => [name, read('lgetxattr', path, functions.lgetxattr(terminated(path), terminated(name), scratch, room))]),
        );
      },
      nextData(fd, offset) {
        const at = Number(functions.lseek(fd, BigInt(offset), SEEK_DATA));
        if (at >= 0) return at;
        return errnoNames[errno()] === 'ENXIO' ? undefined : offset;
      },
      nextHole(fd, offset) {
        const at = Number(functions.lseek(fd, BigInt(offset), SEEK_HOLE));
        return at >= 0 ? at : undefined;
      },
      setTime(path, mtimeNs) {
        if (functions.utimensat(AT_FDCWD, terminated(path), twoTimes(mtimeNs), AT_SYMLINK_NOFOLLOW) !== 0) {
          throw failure('utimensat', path, errno());
        }
      },
      syncFileSystem(fd) {
        if (functions.syncfs(fd) !== 0) throw failure('syncfs', String(fd), errno());
      },
    };
  } catch {
    // No node:ffi in this Node, or a C library without one of them: the tools do it.
    return undefined;
  }
}

/** The same by spawning tools: slow, but there is one for few files only. */
export const viaTools: SystemCalls = {
  makeNode(path, type, major, minor) {
    const numbers = type === 'fifo' ? [] : [String(major), String(minor)];
    run('mknod', ['-m', '0', '--', utf8(path), typeLetters[type], ...numbers]);
  },
  setAttribute(path, name, value) {
    run('setfattr', ['-h', '-n', name, '-v', `0x${value.toString('hex')}`, '--', utf8(path)]);
  },
  attributes(path) {
    const dump = run('getfattr', ['-h', '-d', '-m', '-', '-e', 'hex', '--absolute-names', '--', utf8(path)]);
    return new Map([...dump.matchAll(/^([^=#\n]+)=0x([0-9a-f]*)$/gm)].map(([, name = '', hex = '']) => [name, Buffer.from(hex, 'hex')]));
  },
  nextData: (_fd, offset) => offset,
  nextHole: () => undefined,
  setTime(path, mtimeNs) {
    const seconds = Number(mtimeNs) / 1e9;
    lutimesSync(fsPath(path), seconds, seconds);
  },
  syncFileSystem(fd) {
    fstatSync(fd);
    run('sync', ['-f', `/proc/${process.pid}/fd/${fd}`]);
  },
};

/** Arguments of a process are UTF-8 in Node; a name that is not cannot go this way. */
function utf8(path: string): string {
  const bytes = Buffer.from(path, 'latin1');
  const text = bytes.toString('utf8');
  if (!Buffer.from(text, 'utf8').equals(bytes)) throw failure('spawn', path, 22);
  return text;
}

function run(tool: string, args: readonly string[]): string {
  const result = spawnSync(tool, args, { stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8', timeout: 10_000 });
  if (result.error !== undefined) throw result.error;
  if (result.status === 0) return result.stdout;
  const message = result.stderr.trim();
  const code = message.includes('File exists')
    ? 'EEXIST'
    : message.includes('not supported')
      ? 'ENOTSUP'
      : message.includes('not permitted')
        ? 'EPERM'
        : message.includes('No space')
          ? 'ENOSPC'
          : 'EIO';
  throw Object.assign(new Error(`${code}: ${tool}: ${message}`), { code });
}
