import { constants } from 'node:fs';
import { lchown, link, lstat, mkdir, open, realpath, rm, stat, symlink, type FileHandle } from 'node:fs/promises';
import { DroverError, errnoOf, hasCode, reasonOf } from '@drover/foundation';
import { setAttribute, setTime } from '@drover/linux';
import { maxCopyBytes, maxCopyEntries } from './limits.ts';
import { fsPath, showPath } from './names.ts';
import { isCarriedAttribute, type LeftOut } from './read-tree.ts';
import { TarParser, type TarEntry } from './tar-reader.ts';

export interface WriteTreeOptions {
  /** The directory that entries go below: a byte string, a real path. */
  readonly root: string;
  /** Replaces the first part of the entries' names. */
  readonly rename?: string;
  /** The root was made for this copy: an entry for it sets its mode. */
  readonly rootIsNew: boolean;
  /**
   * Links among the directories above an entry. `below`: followed when they lead to a directory below the root. `none`: refused, for an archive
   * from a sandbox.
   */
  readonly links: 'below' | 'none';
  /** `keep`: the archive's, with set-user-ID bits, capabilities and access lists, also of directories that exist. Undefined: this process's. */
  readonly owner: 'keep' | { readonly uid: number; readonly gid: number } | undefined;
  readonly leftOut: (item: LeftOut) => void;
  /** Called with the bytes of each write to a file. */
  readonly onBytes?: (bytes: number) => void;
  readonly signal: AbortSignal;
}

export interface Written {
  readonly entries: number;
  readonly bytes: number;
}

/**
 * Unpacks a tar stream below a directory. Files that exist are replaced; a directory, or a link to one, is replaced by nothing else. No entry is
 * written outside the root, and none through a link that has a file's name.
 * @throws {DroverError} unsafe-archive, too-large, disk-full, invalid-argument; what the stream throws
 */
export async function writeTree(tar: AsyncIterable<Uint8Array>, options: WriteTreeOptions): Promise<Written> {
  const writer = new TreeWriter(options);
  const events: (TarEntry | Buffer | 'end')[] = [];
  const parser = new TarParser({
    entry: (entry) => void events.push(entry),
    data: (chunk) => void events.push(chunk),
    end: () => void events.push('end'),
  });
  const drain = async (): Promise<void> => {
    for (const event of events.splice(0)) {
      if (event === 'end') await writer.end();
      else if (Buffer.isBuffer(event)) await writer.data(event);
      else await writer.entry(event);
    }
  };
  try {
    for await (const chunk of tar) {
      options.signal.throwIfAborted();
      parser.write(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength));
      await drain();
    }
    parser.end();
    await writer.finish();
    return writer;
  } catch (error) {
    await writer.abandon();
    if (!hasCode(error, 'corrupt-image')) throw error;
    throw new DroverError('invalid-argument', error.message, { hint: 'send an uncompressed tar stream, whole', cause: error });
  }
}

/** Errors that concern one entry; the others can still be written. */
const ofOneEntry = new Set([
  'EACCES',
  'EPERM',
  'ENAMETOOLONG',
  'EINVAL',
  'EFBIG',
  'EILSEQ',
  'EEXIST',
  'ENOTDIR',
  'EISDIR',
  'EMLINK',
  'EXDEV',
]);

class TreeWriter {
  entries = 0;
  bytes = 0;
  readonly #options: WriteTreeOptions;
  /** Set up at the end: a read-only directory cannot be filled, and filling a directory changes its time. */
  readonly #directories: { readonly path: string; readonly entry: TarEntry }[] = [];
  /** Files of this copy. A hard link of an archive from a sandbox may name no others. */
  readonly #files = new Set<string>();
  /** The directory of the last entry, which mostly is that of the next one, too. */
  #parent: { readonly parts: string; readonly path: string } | undefined;
  #file: OpenFile | undefined;

  constructor(options: WriteTreeOptions) {
    this.#options = options;
  }

  async entry(entry: TarEntry): Promise<void> {
    this.entries++;
    if (this.entries > maxCopyEntries) throw tooLarge(`more than ${maxCopyEntries} entries`);
    this.bytes += entry.type === 'file' ? entry.size : 0;
    if (this.bytes > maxCopyBytes) throw tooLarge(`more than ${maxCopyBytes} bytes`);
    try {
      await this.#write(entry);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined || !ofOneEntry.has(errno)) throw named(entry.path, error);
      this.#leaveOut(entry.path, `cannot be written: ${reasonOf(error)}`);
    }
  }

  async data(chunk: Buffer): Promise<void> {
    const file = this.#file;
    if (file === undefined) return;
    try {
      await file.write(chunk);
    } catch (error) {
      throw named(file.entry.path, error);
    }
    this.#options.onBytes?.(chunk.length);
  }

  async end(): Promise<void> {
    const file = this.#file;
    if (file === undefined) return;
    this.#file = undefined;
    try {
      await file.finish();
      await this.#setMetadata(file.path, file.entry, file.handle);
    } finally {
      await file.handle.close();
    }
    this.#setTime(file.path, file.entry);
  }

  async finish(): Promise<void> {
    for (const { path, entry } of this.#directories.reverse()) {
      const handle = await open(fsPath(path), constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
      try {
        await this.#setMetadata(path, entry, handle);
      } finally {
        await handle.close();
      }
      this.#setTime(path, entry);
    }
  }

  /** Removes the file that is being written: half a file must not look like a whole one. */
  async abandon(): Promise<void> {
    const file = this.#file;
    if (file === undefined) return;
    await file.handle.close();
    await rm(fsPath(file.path), { force: true });
  }

  async #write(entry: TarEntry): Promise<void> {
    const { root, rootIsNew } = this.#options;
    const parts = this.#parts(entry.path);
    if (parts.length === 0) {
      if (entry.type !== 'directory') throw unsafe(entry.path, 'would replace the directory itself');
      if (rootIsNew || this.#options.owner === 'keep') this.#directories.push({ path: root, entry });
      return;
    }
    const parent = await this.#realParent(entry.path, parts.slice(0, -1));
    const path = below(parent, parts.at(-1) ?? '');
    switch (entry.type) {
      case 'directory':
        return await this.#directory(path, entry);
      case 'file': {
        const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
        const handle = await this.#create(path, entry, async () => await open(fsPath(path), flags, 0o600));
        if (handle === undefined) return;
        this.#file = new OpenFile(handle, path, entry);
        if (this.#options.links === 'none') this.#files.add(path);
        return;
      }
      case 'symlink': {
        const made = await this.#create(path, entry, async () => await symlink(fsPath(entry.linkPath), fsPath(path)).then(() => true));
        if (made === undefined) return;
        await this.#setMetadata(path, entry, undefined);
        this.#setTime(path, entry);
        return;
      }
      case 'hardlink':
        return await this.#hardLink(path, entry);
      default:
        this.#leaveOut(entry.path, entry.type === 'fifo' ? 'is a FIFO' : 'is a device');
    }
  }

  /** @throws {DroverError} unsafe-archive */
  #parts(path: string): string[] {
    const { rename } = this.#options;
    const parts = path.split('/').filter((part) => part !== '' && part !== '.');
    if (parts.includes('..') || (this.#options.links === 'none' && path.startsWith('/'))) throw unsafe(path, 'leaves the target');
    if (rename !== undefined && parts.length > 0) parts[0] = rename;
    return parts;
  }

  /** The directory of an entry; missing parts are made. @throws {DroverError} unsafe-archive */
  async #realParent(name: string, parts: readonly string[]): Promise<string> {
    const { root, links } = this.#options;
    const key = parts.join('/');
    if (this.#parent?.parts === key) return this.#parent.path;
    let path = root;
    for (const part of parts) {
      const next = below(path, part);
      const found = await lstat(fsPath(next)).catch(absent);
      if (found === undefined) await mkdir(fsPath(next));
      if (found === undefined || found.isDirectory()) {
        path = next;
        continue;
      }
      if (!found.isSymbolicLink()) throw Object.assign(new Error('ENOTDIR: not a directory'), { code: 'ENOTDIR' });
      if (links === 'none') throw unsafe(name, 'is below a link');
      const real = await realpath(fsPath(next), 'latin1');
      if (!isBelow(root, real)) throw unsafe(name, 'is below a link out of the directory');
      path = real;
    }
    this.#parent = { parts: key, path };
    return path;
  }

  async #directory(path: string, entry: TarEntry): Promise<void> {
    try {
      await mkdir(fsPath(path), 0o700);
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      const found = await lstat(fsPath(path));
      if (found.isDirectory()) {
        // An existing directory keeps its owner, mode and time, as with cp(1).
        if (this.#options.owner === 'keep') this.#directories.push({ path, entry });
        return;
      }
      // A link to a directory below the root counts as one; `realParent` checks where it leads when an entry goes into it.
      const isLink = found.isSymbolicLink() && this.#options.links === 'below';
      if (isLink && (await stat(fsPath(path)).catch(absent))?.isDirectory() === true) return;
      this.#leaveOut(entry.path, 'is a directory, and something else has its name');
      return;
    }
    this.#directories.push({ path, entry });
  }

  async #hardLink(path: string, entry: TarEntry): Promise<void> {
    const parts = this.#parts(entry.linkPath);
    const parent = await this.#realParent(entry.linkPath, parts.slice(0, -1));
    this.#parent = undefined;
    const target = below(parent, parts.at(-1) ?? '');
    if (this.#options.links === 'none' && !this.#files.has(target))
      throw unsafe(entry.path, 'is a hard link to a file that is not of this copy');
    if (target === path) return;
    try {
      await this.#create(path, entry, async () => await link(fsPath(target), fsPath(path)).then(() => true));
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error;
      this.#leaveOut(entry.path, 'is a hard link to a file that was left out');
    }
  }

  /** Makes a file or link; replaces what has its name. Undefined: the name belongs to a directory, and the entry was left out. */
  async #create<T>(path: string, entry: TarEntry, make: () => Promise<T>): Promise<T | undefined> {
    try {
      return await make();
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
    }
    const found = await lstat(fsPath(path));
    const isLink = found.isSymbolicLink() && entry.type !== 'symlink';
    if (found.isDirectory() || (isLink && (await stat(fsPath(path)).catch(absent))?.isDirectory() === true)) {
      this.#leaveOut(entry.path, `would replace a directory${isLink ? ', to which a link leads' : ''}`);
      return undefined;
    }
    await rm(fsPath(path), { force: true });
    return await make();
  }

  /** Sets owner, mode and attributes; a link has no mode. Reports what the file system refuses. */
  async #setMetadata(path: string, entry: TarEntry, handle: FileHandle | undefined): Promise<void> {
    const { owner } = this.#options;
    const keeps = owner === 'keep';
    const { uid, gid } = keeps ? entry : (owner ?? {});
    try {
      if (uid !== undefined && gid !== undefined) await (handle === undefined ? lchown(fsPath(path), uid, gid) : handle.chown(uid, gid));
    } catch (error) {
      this.#notKept(entry, `its owner ${uid}:${gid}`, error);
    }
    // After the owner: chown(2) clears set-user-ID bits.
    if (handle !== undefined) await handle.chmod(entry.mode & (keeps ? 0o7777 : 0o1777));
    for (const [name, value] of entry.attributes) {
      if (!isCarriedAttribute(name) || !(keeps || name.startsWith('user.'))) continue;
      try {
        setAttribute(path, name, value);
      } catch (error) {
        this.#notKept(entry, `its attribute ${showPath(name)}`, error);
      }
    }
  }

  #notKept(entry: TarEntry, what: string, error: unknown): void {
    const errno = errnoOf(error);
    if (errno === undefined) throw error;
    this.#leaveOut(entry.path, `was copied without ${what}: ${reasonOf(error)}`);
  }

  #setTime(path: string, entry: TarEntry): void {
    try {
      setTime(path, entry.mtimeNs);
    } catch (error) {
      // A process of the sandbox may have removed it.
      if (errnoOf(error) !== 'ENOENT') this.#notKept(entry, 'its time', error);
    }
  }

  #leaveOut(path: string, reason: string): void {
    this.#options.leftOut({ path, reason });
  }
}

/** A file whose data is being written. */
class OpenFile {
  readonly handle: FileHandle;
  readonly path: string;
  readonly entry: TarEntry;
  #segment = 0;
  #inSegment = 0;

  constructor(handle: FileHandle, path: string, entry: TarEntry) {
    this.handle = handle;
    this.path = path;
    this.entry = entry;
  }

  async write(chunk: Buffer): Promise<void> {
    const { sparse } = this.entry;
    if (sparse === undefined) return await this.#writeAll(chunk, null);
    for (let at = 0; at < chunk.length; ) {
      const segment = sparse.segments[this.#segment];
      // The parser has checked that the map covers the data.
      if (segment === undefined) return;
      const take = Math.min(segment.size - this.#inSegment, chunk.length - at);
      if (take > 0) await this.#writeAll(chunk.subarray(at, at + take), segment.offset + this.#inSegment);
      at += take;
      this.#inSegment += take;
      if (this.#inSegment === segment.size) {
        this.#segment++;
        this.#inSegment = 0;
      }
    }
  }

  async finish(): Promise<void> {
    if (this.entry.sparse !== undefined) await this.handle.truncate(this.entry.sparse.realSize);
  }

  async #writeAll(chunk: Buffer, position: number | null): Promise<void> {
    for (let at = 0; at < chunk.length; ) {
      const { bytesWritten } = await this.handle.write(chunk, at, chunk.length - at, position === null ? null : position + at);
      at += bytesWritten;
    }
  }
}

function below(directory: string, name: string): string {
  return directory === '/' ? `/${name}` : `${directory}/${name}`;
}

function isBelow(root: string, path: string): boolean {
  return root === '/' || path === root || path.startsWith(`${root}/`);
}

function absent(error: unknown): undefined {
  const errno = errnoOf(error);
  if (errno !== 'ENOENT' && errno !== 'ENOTDIR' && errno !== 'ELOOP') throw error;
}

function tooLarge(what: string): DroverError {
  return new DroverError('too-large', `the copy has ${what}`, { hint: 'copy it in parts, or pack it first' });
}

function unsafe(path: string, why: string): DroverError {
  return new DroverError('unsafe-archive', `the archive's entry ${JSON.stringify(showPath(path.slice(0, 200)))} ${why}`, {
    hint: 'nothing after it was unpacked; do not trust the sender of this archive',
  });
}

/** The error of a system call, with the name of its entry. */
function named(path: string, error: unknown): unknown {
  const errno = errnoOf(error);
  if (errno === undefined) return error;
  const { code, hint } = DroverError.from(error, 'runtime-failed');
  const full = code === 'disk-full';
  return new DroverError(code, `${showPath(path)} cannot be written: ${full ? 'no space left on the disk' : reasonOf(error)}`, {
    ...(full ? { hint: 'free some space in the target of the copy' } : hint === undefined ? {} : { hint }),
    cause: error,
  });
}
