import { lutimesSync } from 'node:fs';
import { maxAttributeBytes } from './limits.ts';
import { cString, errnoName, errno, libcFunctions, systemError } from './libc.ts';

/**
 * Calls on files that Node has no API for. Paths and names are byte strings: one latin1 character is one byte, since a file's name need not be
 * UTF-8. Each throws an error with `code`, as functions of node:fs do.
 *
 * `drover cp` also runs on other systems than Linux. There a file has no attributes and no holes, and its time is set to the microsecond.
 */
const isLinux = process.platform === 'linux';

const libc = libcFunctions({
  mknod: { arguments: ['buffer', 'u32', 'u64'], return: 'i32' },
  lsetxattr: { arguments: ['buffer', 'buffer', 'buffer', 'u64', 'i32'], return: 'i32' },
  llistxattr: { arguments: ['buffer', 'buffer', 'u64'], return: 'i64' },
  lgetxattr: { arguments: ['buffer', 'buffer', 'buffer', 'u64'], return: 'i64' },
  lseek: { arguments: ['i32', 'i64', 'i32'], return: 'i64' },
  utimensat: { arguments: ['i32', 'buffer', 'buffer', 'i32'], return: 'i32' },
  syncfs: { arguments: ['i32'], return: 'i32' },
  chroot: { arguments: ['buffer'], return: 'i32' },
});

/** Source: inode(7); include/uapi/linux/fs.h and fcntl.h. */
const fileTypes = { character: 0o020000, block: 0o060000, fifo: 0o010000 } as const;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const AT_FDCWD = -100;
const AT_SYMLINK_NOFOLLOW = 0x100;

export type NodeType = keyof typeof fileTypes;

const bytes = (text: string): Buffer => cString(text, 'latin1');

/** mknod(2), with mode 0: the umask does not matter then. */
export function makeNode(path: string, type: NodeType, major: number, minor: number): void {
  if (libc().mknod(bytes(path), fileTypes[type], deviceNumber(major, minor)) !== 0) throw systemError('mknod', path);
}

/** gnu_dev_makedev of the C library: 12 and 20 bits, spread over 64. */
function deviceNumber(major: number, minor: number): bigint {
  const a = BigInt(major);
  const b = BigInt(minor);
  return ((a & 0xfffff000n) << 32n) | ((a & 0xfffn) << 8n) | ((b & 0xffffff00n) << 12n) | (b & 0xffn);
}

/** Sets an extended attribute; a symbolic link is not followed. */
export function setAttribute(path: string, name: string, value: Buffer): void {
  if (!isLinux) throw Object.assign(new Error(`ENOTSUP: lsetxattr ${JSON.stringify(path)}`), { code: 'ENOTSUP' });
  if (libc().lsetxattr(bytes(path), bytes(name), value, BigInt(value.length), 0) !== 0) throw systemError('lsetxattr', path);
}

/** The extended attributes of a path; a symbolic link is not followed. */
export function attributesOf(path: string): ReadonlyMap<string, Buffer> {
  if (!isLinux) return new Map();
  const { llistxattr, lgetxattr } = libc();
  const room = BigInt(attributeBytes.length);
  const filled = (call: string, size: bigint): Buffer => {
    if (size < 0n) throw systemError(call, path);
    return Buffer.from(attributeBytes.subarray(0, Number(size)));
  };
  const names = filled('llistxattr', llistxattr(bytes(path), attributeBytes, room))
    .toString('latin1')
    .split('\0')
    .slice(0, -1);
  return new Map(names.map((name) => [name, filled('lgetxattr', lgetxattr(bytes(path), bytes(name), attributeBytes, room))]));
}

const attributeBytes = Buffer.alloc(maxAttributeBytes);

/** The offset of the next data at or after `offset`; undefined when only a hole follows. */
export function nextData(fd: number, offset: number): number | undefined {
  if (!isLinux) return offset;
  const found = Number(libc().lseek(fd, BigInt(offset), SEEK_DATA));
  if (found >= 0) return found;
  return errnoName(errno()) === 'ENXIO' ? undefined : offset;
}

/** The offset of the next hole at or after `offset`, at the latest the file's end; undefined where holes cannot be seen. */
export function nextHole(fd: number, offset: number): number | undefined {
  const found = isLinux ? Number(libc().lseek(fd, BigInt(offset), SEEK_HOLE)) : -1;
  return found >= 0 ? found : undefined;
}

/** Sets the times of modification and of access, in nanoseconds since the epoch; a symbolic link is not followed. */
export function setTime(path: string, timeNs: bigint): void {
  const second = 1_000_000_000n;
  if (!isLinux) {
    const seconds = Number(timeNs) / Number(second);
    return lutimesSync(Buffer.from(path, 'latin1'), seconds, seconds);
  }
  // struct timespec[2]: seconds and nanoseconds, 64 bits each.
  const times = Buffer.alloc(32);
  const nanoseconds = ((timeNs % second) + second) % second;
  for (const at of [0, 16]) {
    times.writeBigInt64LE((timeNs - nanoseconds) / second, at);
    times.writeBigInt64LE(nanoseconds, at + 8);
  }
  if (libc().utimensat(AT_FDCWD, bytes(path), times, AT_SYMLINK_NOFOLLOW) !== 0) throw systemError('utimensat', path);
}

/** Writes back everything of the file system that `fd` is on. */
export function syncFileSystem(fd: number): void {
  if (libc().syncfs(fd) !== 0) throw systemError('syncfs', String(fd));
}

/** chroot(2) of the whole process, and its working directory. The functions above work afterwards, without files of the new root. */
export function changeRootDirectory(path: string): void {
  if (libc().chroot(cString(path)) !== 0) throw systemError('chroot', path);
  process.chdir('/');
}
