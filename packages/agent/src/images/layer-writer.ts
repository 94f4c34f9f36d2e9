import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  ftruncateSync,
  lchownSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  openSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeSync,
  futimesSync,
  type Stats,
} from 'node:fs';
import { DroverError, errnoOf } from '@drover/foundation';
import { maxLayerBytes, maxLayerEntries, maxLinksFollowed } from '../limits.ts';
import { systemCalls } from './system-calls.ts';
import type { TarEntry, TarHandler } from './tar.ts';

/**
 * Writes a layer's entries into an empty directory that nobody else writes to, as root, in the form that overlayfs
 * takes for a lower directory: whiteouts become character devices 0/0, opaque markers an attribute (R-11;
 * image-spec layer.md; kernel Documentation/filesystems/overlayfs.rst).
 *
 * No path leaves the root: every directory on the way to an entry is looked at with lstat, a symbolic link
 * among them is resolved as if the root were `/`, and the last component is never followed. Since only this writer
 * changes the tree, what was looked at stays true.
 *
 * Paths are byte strings in latin1, as tar.ts gives them.
 */
export class LayerWriter implements TarHandler {
  readonly #root: string;
  /** Directories that are real directories, by the path they were asked for. Cleared when one goes. */
  #resolved = new Map<string, string>();
  /** Times of directories are set last: writing into them changes them. */
  readonly #directoryTimes = new Map<string, number>();
  #entries = 0;
  #bytes = 0;
  #file: OpenFile | undefined;

  /** @param root an absolute path to an empty directory */
  constructor(root: string) {
    this.#root = Buffer.from(root, 'utf8').toString('latin1');
    this.#resolved.set('', this.#root);
  }

  get entries(): number {
    return this.#entries;
  }

  get bytes(): number {
    return this.#bytes;
  }

  entry(entry: TarEntry): void {
    this.#count(entry);
    const components = split(entry.path);
    const last = components.pop();
    if (last === undefined) {
      if (entry.type === 'directory') this.#finishDirectory(this.#root, entry);
      return;
    }
    const parent = this.#directory(components, 0);
    if (last.startsWith('.wh.')) {
      this.#whiteout(parent, last);
      return;
    }
    this.#write(`${parent}/${last}`, entry);
  }

  data(chunk: Buffer): void {
    this.#file?.write(chunk);
  }

  end(): void {
    this.#file?.finish();
    this.#file = undefined;
  }

  /** Sets what can only be set at the end. */
  finish(): void {
    for (const [path, mtime] of this.#directoryTimes) lutimesSync(name(path), mtime, mtime);
  }

  /** Closes what a failure left open. */
  abandon(): void {
    this.#file?.close();
    this.#file = undefined;
  }

  /** counts and sizes are refused from the header, before a byte is written. */
  #count(entry: TarEntry): void {
    this.#entries++;
    this.#bytes += Math.max(entry.type === 'file' ? entry.size : 0, entry.sparse?.realSize ?? 0);
    if (this.#entries > maxLayerEntries) {
      throw new DroverError('too-large', `a layer of the image has more than ${maxLayerEntries} entries`, { hint: 'use a smaller image' });
    }
    if (this.#bytes > maxLayerBytes) {
      throw new DroverError('too-large', `a layer of the image unpacks to more than ${maxLayerBytes / 1024 ** 3} GiB`, {
        hint: 'use a smaller image',
      });
    }
  }

  #write(path: string, entry: TarEntry): void {
    switch (entry.type) {
      case 'directory':
        this.#makeDirectory(path);
        this.#finishDirectory(path, entry);
        return;
      case 'file':
        this.#file = new OpenFile(
          this.#create(path, () => openSync(name(path), createFlags, 0o600)),
          path,
          entry,
        );
        return;
      case 'symlink':
        if (entry.linkPath === '') throw unsafe(entry.path, 'a symbolic link to nothing');
        this.#create(path, () => symlinkSync(name(entry.linkPath), name(path)));
        setOwner(path, entry);
        setAttributes(path, entry);
        lutimesSync(name(path), entry.mtime, entry.mtime);
        return;
      case 'hardlink': {
        const components = split(entry.linkPath);
        const last = components.pop();
        if (last === undefined) throw unsafe(entry.path, 'a hard link to the root');
        const target = `${this.#directory(components, 0)}/${last}`;
        if (target === path) return;
        // link(2) does not follow a symbolic link: it links the link itself.
        try {
          this.#create(path, () => linkSync(name(target), name(path)));
        } catch (error) {
          if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'EPERM') {
            throw new DroverError('corrupt-image', `the layer has a hard link to ${show(entry.linkPath)}, which is no file of it`, {
              hint: 'pull or build the image again',
              cause: error,
            });
          }
          throw error;
        }
        return;
      }
      case 'character':
      case 'block':
      case 'fifo': {
        const { type } = entry;
        this.#create(path, () => systemCalls().makeNode(path, type, entry.deviceMajor, entry.deviceMinor));
        setOwner(path, entry);
        chmodSync(name(path), entry.mode);
        setAttributes(path, entry);
        lutimesSync(name(path), entry.mtime, entry.mtime);
        return;
      }
    }
  }

  #makeDirectory(path: string): void {
    try {
      mkdirSync(name(path), 0o755);
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      if (lstatSync(name(path)).isDirectory()) return;
      this.#remove(path);
      mkdirSync(name(path), 0o755);
    }
  }

  #finishDirectory(path: string, entry: TarEntry): void {
    setOwner(path, entry);
    chmodSync(name(path), entry.mode);
    setAttributes(path, entry);
    this.#directoryTimes.set(path, entry.mtime);
  }

  /** Makes something that must not exist; what is there goes: in a tar, the later entry wins. */
  #create<T>(path: string, make: () => T): T {
    try {
      return make();
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      this.#remove(path);
      return make();
    }
  }

  #remove(path: string): void {
    // rm does not follow symbolic links.
    rmSync(name(path), { recursive: true, force: true });
    this.#resolved = new Map([['', this.#root]]);
    for (const known of this.#directoryTimes.keys()) {
      if (known === path || known.startsWith(`${path}/`)) this.#directoryTimes.delete(known);
    }
  }

  /** image-spec layer.md, "Whiteouts": they hide what lower layers have, not what this one has. */
  #whiteout(parent: string, marker: string): void {
    if (marker === '.wh..wh..opq') {
      systemCalls().setAttribute(parent, 'trusted.overlay.opaque', Buffer.from('y'));
      return;
    }
    // Bookkeeping of AUFS, which old images carry (.wh..wh.aufs, .wh..wh.plnk, .wh..wh.orph): it means nothing here.
    if (marker.startsWith('.wh..wh.')) return;
    const hidden = marker.slice('.wh.'.length);
    if (hidden === '' || hidden === '.' || hidden === '..') throw unsafe(marker, 'a whiteout of a directory above it');
    const path = `${parent}/${hidden}`;
    try {
      systemCalls().makeNode(path, 'character', 0, 0);
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
    }
  }

  /**
   * The real directory for components below the root, made where it is missing. Links are resolved inside the root.
   * @throws {DroverError} unsafe-archive
   */
  #directory(components: readonly string[], followed: number): string {
    const key = components.join('/');
    const known = this.#resolved.get(key);
    if (known !== undefined) return known;

    let current = this.#root;
    let depth: string[] = [];
    const waiting = [...components];
    let links = followed;
    for (let component = waiting.shift(); component !== undefined; component = waiting.shift()) {
      if (component === '..') {
        // Only from a link's target: clamped at the root, as in a chroot.
        depth = depth.slice(0, -1);
        current = [this.#root, ...depth].join('/');
        continue;
      }
      const next = `${current}/${component}`;
      const status = lstat(next);
      if (status?.isSymbolicLink() === true) {
        links++;
        if (links > maxLinksFollowed) throw unsafe(key, 'too many symbolic links on the way');
        const target = readlinkSync(name(next), 'latin1');
        if (target.startsWith('/')) {
          depth = [];
          current = this.#root;
        }
        waiting.unshift(...target.split('/').filter((part) => part !== '' && part !== '.'));
        continue;
      }
      if (status === undefined) mkdirSync(name(next), 0o755);
      else if (!status.isDirectory()) {
        // A file where a directory is needed: the later entry wins, as in any tar.
        this.#remove(next);
        mkdirSync(name(next), 0o755);
      }
      depth.push(component);
      current = next;
    }
    this.#resolved.set(key, current);
    return current;
  }
}

const createFlags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;

/** A regular file while its data comes. */
class OpenFile {
  readonly #fd: number;
  readonly #path: string;
  readonly #entry: TarEntry;
  #segment = 0;
  #inSegment = 0;

  constructor(fd: number, path: string, entry: TarEntry) {
    this.#fd = fd;
    this.#path = path;
    this.#entry = entry;
  }

  write(chunk: Buffer): void {
    const { sparse } = this.#entry;
    if (sparse === undefined) {
      writeAll(this.#fd, chunk, null);
      return;
    }
    let at = 0;
    while (at < chunk.length) {
      const segment = sparse.segments[this.#segment];
      // The parser checked that the map covers the data.
      if (segment === undefined) return;
      const take = Math.min(segment.size - this.#inSegment, chunk.length - at);
      if (take > 0) writeAll(this.#fd, chunk.subarray(at, at + take), segment.offset + this.#inSegment);
      at += take;
      this.#inSegment += take;
      if (this.#inSegment === segment.size) {
        this.#segment++;
        this.#inSegment = 0;
      }
    }
  }

  finish(): void {
    const { uid, gid, mode, mtime, sparse, attributes } = this.#entry;
    if (sparse !== undefined) ftruncateSync(this.#fd, sparse.realSize);
    // chown clears setuid bits and capabilities, so it comes first.
    if (uid !== 0 || gid !== 0) fchownSync(this.#fd, uid, gid);
    fchmodSync(this.#fd, mode);
    if (attributes.size > 0) setAttributes(this.#path, this.#entry);
    futimesSync(this.#fd, mtime, mtime);
    closeSync(this.#fd);
  }

  close(): void {
    closeSync(this.#fd);
  }
}

function writeAll(fd: number, chunk: Buffer, position: number | null): void {
  let at = 0;
  while (at < chunk.length) at += writeSync(fd, chunk, at, chunk.length - at, position === null ? null : position + at);
}

/** A path of the archive, as components. Leading slashes mean the root. @throws {DroverError} unsafe-archive for `..` */
function split(path: string): string[] {
  const components: string[] = [];
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') throw unsafe(path, 'a path out of the image');
    if (part.length > 255) throw unsafe(path, 'a name of more than 255 bytes');
    components.push(part);
  }
  if (path.length > 4096) throw unsafe(path, 'a path of more than 4096 bytes');
  return components;
}

/** What fs takes: the string itself when it is ASCII, else its bytes. */
function name(path: string): string | Buffer {
  // oxlint-disable-next-line no-control-regex
  return /^[\0-\x7f]*$/.test(path) ? path : Buffer.from(path, 'latin1');
}

function lstat(path: string): Stats | undefined {
  return lstatSync(name(path), { throwIfNoEntry: false });
}

function setOwner(path: string, entry: TarEntry): void {
  if (entry.uid !== 0 || entry.gid !== 0) lchownSync(name(path), entry.uid, entry.gid);
}

/**
 * Attributes that an image may carry. `trusted.` ones command overlayfs itself (redirects, opaque directories), so a layer
 * may not bring them; labels of the machine that built it (`security.selinux`, `security.ima`, …) mean nothing here.
 */
function setAttributes(path: string, entry: TarEntry): void {
  for (const [attribute, value] of entry.attributes) {
    const carried = attribute.startsWith('user.') ? !attribute.startsWith('user.overlay.') : carriedAttributes.has(attribute);
    if (!carried) continue;
    try {
      systemCalls().setAttribute(path, attribute, value);
    } catch (error) {
      // File systems without them, and user attributes on links and devices (xattr(7)): the file is right without.
      if (errnoOf(error) === 'ENOTSUP' || (errnoOf(error) === 'EPERM' && attribute.startsWith('user.'))) continue;
      throw error;
    }
  }
}

const carriedAttributes = new Set(['security.capability', 'system.posix_acl_access', 'system.posix_acl_default']);

const show = (path: string): string => JSON.stringify(Buffer.from(path.slice(0, 200), 'latin1').toString('utf8'));

function unsafe(path: string, what: string): DroverError {
  return new DroverError('unsafe-archive', `the layer is refused: ${show(path)} is ${what}`, {
    hint: 'do not trust where this image comes from',
  });
}
