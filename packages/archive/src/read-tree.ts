import { constants, realpathSync, type BigIntStats } from 'node:fs';
import { lstat, open, readdir, readlink, stat, type FileHandle } from 'node:fs/promises';
import { DroverError, errnoOf, reasonOf as systemReasonOf } from '@drover/foundation';
import { attributesOf, nextData, nextHole } from '@drover/linux';
import { maxSparseSegments, maxUnsizedBytes, treeChunkBytes, wholeFileBytes } from './limits.ts';
import { fsPath, showPath } from './names.ts';
import type { SparseMap } from './sparse.ts';
import { tarEnd, tarHeader, tarPadding, type TarHeader } from './tar-writer.ts';

/** A file that a copy does not contain. */
export interface LeftOut {
  /** A byte string. */
  readonly path: string;
  /** Continues a sentence that begins with the path: `is a socket`. */
  readonly reason: string;
}

export interface ReadTreeOptions {
  /** The top of the tree, which must exist. A byte string. */
  readonly path: string;
  /** The first part of the entries' names; `.` for the contents of a directory. */
  readonly name: string;
  /** Copies the targets of symbolic links instead of the links. */
  readonly followLinks: boolean;
  /** Follows `path` itself if it is a link. */
  readonly followPath?: boolean;
  /** Whether a directory is empty in the archive. */
  readonly isOpaque?: (path: string) => boolean;
  /** Maps the owner of a file to the owner in the archive. */
  readonly owner?: (uid: number, gid: number) => { readonly uid: number; readonly gid: number };
  readonly signal: AbortSignal;
}

/**
 * A tree of files as a tar stream, in pieces of about `treeChunkBytes`, and between them the files that it leaves out. A large file that changes
 * while it is read ends the copy with an error that names it. Holes, hard links, extended attributes and nanoseconds are kept.
 * @throws {DroverError} failed-precondition, disk-full, …; the signal's reason
 */
export function readTree(options: ReadTreeOptions): AsyncGenerator<Buffer | LeftOut, void, undefined> {
  return new TreeReader(options).read();
}

/** Why a copy cannot contain this; undefined for a file, a directory or a symbolic link. */
export function unsupportedKind(stats: BigIntStats): string | undefined {
  if (stats.isFIFO()) return 'is a FIFO';
  if (stats.isSocket()) return 'is a socket';
  if (stats.isCharacterDevice() || stats.isBlockDevice()) return 'is a device';
  return undefined;
}

/** Whether an attribute has a meaning on another machine. Labels of this machine (`security.selinux`, …) and its overlays' attributes have none. */
export function isCarriedAttribute(name: string): boolean {
  return name.startsWith('user.')
    ? !name.startsWith('user.overlay.')
    : name === 'security.capability' || name === 'system.posix_acl_access' || name === 'system.posix_acl_default';
}

/** Errors that concern one file; the others remain readable. */
const ofOneFile = new Set([
  'ENODATA',
  'EACCES',
  'EPERM',
  'ENOENT',
  'ENOTDIR',
  'ENAMETOOLONG',
  'ENXIO',
  'ELOOP',
  'EIO',
  'EINVAL',
  'ENODEV',
  'ESTALE',
  'EOPNOTSUPP',
  'EAGAIN',
]);

class TreeReader {
  readonly #options: ReadTreeOptions;
  /** First names of files with several names, by device and inode. */
  readonly #linked = new Map<string, string>();
  /** Directories above the current one, by device and inode: following links must not lead back to them. */
  readonly #above = new Set<string>();
  #pieces: Buffer[] = [];
  #bytes = 0;

  constructor(options: ReadTreeOptions) {
    this.#options = options;
  }

  async *read(): AsyncGenerator<Buffer | LeftOut, void, undefined> {
    const { path, name, followPath } = this.#options;
    yield* this.#node(path, name, followPath);
    this.#add(tarEnd);
    yield* this.#flush(0);
  }

  async *#node(path: string, name: string, followLinks = this.#options.followLinks): AsyncGenerator<Buffer | LeftOut, void, undefined> {
    const { signal } = this.#options;
    signal.throwIfAborted();
    try {
      const stats = followLinks ? await stat(fsPath(path), { bigint: true }) : await lstat(fsPath(path), { bigint: true });
      const unfit = unsupportedKind(stats);
      if (unfit !== undefined) yield { path, reason: unfit };
      else if (stats.isDirectory()) yield* this.#directory(path, name, stats, followLinks);
      else if (stats.isSymbolicLink()) {
        this.#header(path, stats, false, { name, type: 'symlink', linkName: await readlink(fsPath(path), 'latin1') });
        yield* this.#flush();
      } else yield* this.#file(path, name, stats, followLinks);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined || !ofOneFile.has(errno)) throw error;
      yield { path, reason: reasonOf(errno, followLinks) };
    }
  }

  async *#directory(path: string, name: string, stats: BigIntStats, follows: boolean): AsyncGenerator<Buffer | LeftOut, void, undefined> {
    const { isOpaque } = this.#options;
    const key = `${stats.dev}:${stats.ino}`;
    if (this.#above.has(key)) {
      yield { path, reason: 'is a link to a directory above it' };
      return;
    }
    this.#header(path, stats, follows, { name: `${name}/`, type: 'directory' });
    yield* this.#flush();
    if (isOpaque?.(path) === true) return;
    const children = await readdir(fsPath(path), 'latin1');
    this.#above.add(key);
    for (const child of children.sort()) yield* this.#node(path === '/' ? `/${child}` : `${path}/${child}`, `${name}/${child}`);
    this.#above.delete(key);
  }

  async *#file(path: string, name: string, found: BigIntStats, follows: boolean): AsyncGenerator<Buffer | LeftOut, void, undefined> {
    const key = found.nlink > 1n ? `${found.dev}:${found.ino}` : undefined;
    const linkName = key === undefined ? undefined : this.#linked.get(key);
    if (linkName !== undefined) {
      this.#header(path, found, follows, { name, type: 'hardlink', linkName });
      yield* this.#flush();
      return;
    }
    // O_NONBLOCK: a FIFO may have replaced the file.
    const noFollow = follows ? 0 : constants.O_NOFOLLOW;
    const file = await open(fsPath(path), constants.O_RDONLY | constants.O_NONBLOCK | noFollow);
    try {
      const stats = await file.stat({ bigint: true });
      if (!stats.isFile()) {
        yield { path, reason: 'was replaced by something else while it was copied' };
        return;
      }
      const size = Number(stats.size);
      const sparse = stats.blocks * 512n < stats.size ? sparseMapOf(file.fd, size) : undefined;
      if (sparse === undefined && size <= wholeFileBytes) {
        const content = await readWhole(file, size);
        if (content === undefined) {
          yield { path, reason: `reports no size, and has more than ${maxUnsizedBytes} bytes` };
          return;
        }
        this.#header(path, stats, follows, { name, type: 'file', size: content.length });
        this.#add(content, tarPadding(content.length));
        yield* this.#flush();
      } else yield* this.#largeFile(file, path, name, stats, sparse, follows);
      if (key !== undefined) this.#linked.set(key, name);
    } finally {
      await file.close();
    }
  }

  /** Writes the size before it reads the data. */
  async *#largeFile(
    file: FileHandle,
    path: string,
    name: string,
    stats: BigIntStats,
    sparse: SparseMap | undefined,
    follows: boolean,
  ): AsyncGenerator<Buffer, void, undefined> {
    const segments = sparse?.segments ?? [{ offset: 0, size: Number(stats.size) }];
    const size = segments.reduce((sum, segment) => sum + segment.size, 0);
    this.#header(path, stats, follows, { name, type: 'file', size, ...(sparse !== undefined && { sparse }) });
    for (const segment of segments) {
      const end = segment.offset + segment.size;
      for (let at = segment.offset; at < end; ) {
        this.#options.signal.throwIfAborted();
        const buffer = Buffer.allocUnsafeSlow(Math.min(end - at, treeChunkBytes));
        const { bytesRead } = await file.read(buffer, 0, buffer.length, at).catch((error: unknown) => {
          throw unreadable(path, at, error);
        });
        if (bytesRead === 0) throw changed(path, `it had ${stats.size} bytes, and ended after ${at}`);
        at += bytesRead;
        this.#add(buffer.subarray(0, bytesRead));
        yield* this.#flush();
      }
    }
    const now = await file.stat({ bigint: true });
    if (now.size !== stats.size) throw changed(path, `it had ${stats.size} bytes, and has ${now.size}`);
    if (now.mtimeNs !== stats.mtimeNs) throw changed(path, 'it was written to');
    this.#add(tarPadding(size));
  }

  #header(
    path: string,
    stats: BigIntStats,
    follows: boolean,
    entry: Pick<TarHeader, 'name' | 'type' | 'linkName' | 'size' | 'sparse'>,
  ): void {
    const [uid, gid] = [Number(stats.uid), Number(stats.gid)];
    const attributes =
      entry.type === 'hardlink' ? undefined : carriedAttributes(follows ? realpathSync.native(fsPath(path), 'latin1') : path);
    this.#add(
      tarHeader({
        ...entry,
        mode: Number(stats.mode) & 0o7777,
        ...(this.#options.owner?.(uid, gid) ?? { uid, gid }),
        mtimeNs: stats.mtimeNs,
        ...(attributes !== undefined && { attributes }),
      }),
    );
  }

  #add(...pieces: readonly Buffer[]): void {
    for (const piece of pieces) {
      if (piece.length === 0) continue;
      this.#pieces.push(piece);
      this.#bytes += piece.length;
    }
  }

  /** Passes on what has been collected if it is at least this much. */
  *#flush(atLeast = treeChunkBytes): Generator<Buffer, void, undefined> {
    if (this.#bytes === 0 || this.#bytes < atLeast) return;
    const [first, ...more] = this.#pieces;
    this.#pieces = [];
    this.#bytes = 0;
    // A single piece is passed on without a copy.
    if (first !== undefined && more.length === 0) yield first;
    else yield Buffer.concat([first ?? Buffer.alloc(0), ...more]);
  }
}

function carriedAttributes(path: string): ReadonlyMap<string, Buffer> | undefined {
  try {
    const attributes = [...attributesOf(path)].filter(([name]) => isCarriedAttribute(name));
    return attributes.length === 0 ? undefined : new Map(attributes);
  } catch (error) {
    if (errnoOf(error) === 'ENOTSUP') return undefined;
    throw error;
  }
}

/** The parts of a file with data; undefined when it is simpler to read it as one piece. */
function sparseMapOf(fd: number, realSize: number): SparseMap | undefined {
  const segments: { offset: number; size: number }[] = [];
  for (let at = 0; at < realSize; ) {
    const offset = nextData(fd, at);
    if (offset === undefined || offset >= realSize) break;
    const end = nextHole(fd, offset);
    if (end === undefined || segments.length === maxSparseSegments) return undefined;
    at = Math.min(end, realSize);
    // The file was truncated meanwhile; reading it reports that.
    if (at <= offset) return undefined;
    segments.push({ offset, size: at - offset });
  }
  const [only] = segments;
  return segments.length === 1 && only?.size === realSize ? undefined : { realSize, segments };
}

/** All of a small file, or of a file that reports no size; undefined when that is more than `maxUnsizedBytes`. */
async function readWhole(file: FileHandle, size: number): Promise<Buffer | undefined> {
  const pieces: Buffer[] = [];
  let length = 0;
  // One byte more than the size: a short read is the end of the file.
  for (let wanted = size === 0 ? 4096 : size + 1; ; wanted = 64 * 1024) {
    const buffer = Buffer.allocUnsafeSlow(wanted);
    const { bytesRead } = await file.read(buffer, 0, wanted, null);
    length += bytesRead;
    if (length > maxUnsizedBytes) return undefined;
    if (bytesRead > 0) pieces.push(buffer.subarray(0, bytesRead));
    if (bytesRead === 0 || (length === size && pieces.length === 1)) return pieces.length === 1 ? pieces[0] : Buffer.concat(pieces);
  }
}

function changed(path: string, how: string): DroverError {
  return new DroverError('failed-precondition', `${showPath(path)} changed while it was copied: ${how}`, {
    hint: 'the copy of it is incomplete; copy it again when no process writes to it',
  });
}

/** The archive already has the size of the file: if the file were left out now, the entries after it would be read as its content. */
function unreadable(path: string, at: number, cause: unknown): DroverError {
  const { code } = DroverError.from(cause, 'runtime-failed');
  return new DroverError(code, `${showPath(path)} cannot be read to its end: ${systemReasonOf(cause)} after ${at} bytes`, {
    hint: 'the copy is incomplete; repair the disk that the file is on, or copy the other files by their names',
    cause,
  });
}

function reasonOf(errno: string, followLinks: boolean): string {
  if (errno === 'ENOENT') return followLinks ? 'does not exist, or is a link to nothing' : 'was removed while it was copied';
  // A program can move directories into each other; the kernel accepts paths of 4,096 bytes.
  if (errno === 'ENAMETOOLONG') return 'has too long a path';
  if (errno === 'EACCES' || errno === 'EPERM') return 'cannot be read: permission denied';
  return `cannot be read (${errno})`;
}
