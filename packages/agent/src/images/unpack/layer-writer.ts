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
  readdirSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeSync,
  futimesSync,
  type Stats,
} from 'node:fs';
import { fsPath, type TarEntry, type TarHandler } from '@drover/archive';
import { makeNode, setAttribute } from '@drover/linux';
import { DroverError, errnoOf, formatBytes } from '@drover/foundation';
import { maxLayerBytes, maxLayerEntries, maxLinksFollowed } from '../../limits.ts';
import { copyMetadata, copyUp } from './copy-up.ts';
import { isWhiteout, LowerLayers, NeedsLowerLayers, opaqueAttribute, type LowerEntry } from './lower-layers.ts';

export interface LayerWriterOptions {
  /** The layers below, lowest first. Absent: they are not unpacked yet, and a layer that depends on them throws NeedsLowerLayers. */
  readonly lower?: readonly string[] | undefined;
  /** Bytes that the layer's files may have in the archive. Above: unsafe-archive. */
  readonly dataLimit?: number;
}

/**
 * Writes a layer's entries, as root, into an empty directory that no other process writes to, in the form of an overlayfs lower directory:
 * whiteouts become character devices 0/0, opaque markers an attribute (R-11; image-spec layer.md; kernel
 * Documentation/filesystems/overlayfs.rst). Over the layers below it, the tree equals that of unpacking all of them into one directory: an
 * entry's path follows links of lower layers, a directory without an entry keeps the lower directory's owner and mode, and a hard link may name
 * a lower file, which is copied up.
 *
 * No path leaves the root: every directory on the path of an entry is checked with lstat, a symbolic link among them is resolved as if
 * the root were `/`, and the last component is never followed. Only this writer changes the tree, so the checks stay valid.
 *
 * Paths are byte strings in latin1, as from tar.ts.
 */
export class LayerWriter implements TarHandler {
  readonly #root: string;
  /** Real directories by requested path. Cleared when one is removed. */
  #resolved = new Map<string, string>();
  /** Set last, since writing into a directory changes its time. */
  readonly #directoryTimes = new Map<string, number>();
  readonly #lower: LowerLayers | undefined;
  readonly #dataLimit: number;
  /** Directories of this layer that hide the ones below. */
  readonly #opaque = new Set<string>();
  #relative = false;
  #rootEntry = false;
  #entries = 0;
  #bytes = 0;
  #dataBytes = 0;
  #file: OpenFile | undefined;

  /** @param root an absolute path to an empty directory */
  constructor(root: string, options: LayerWriterOptions = {}) {
    this.#root = Buffer.from(root, 'utf8').toString('latin1');
    this.#lower = options.lower === undefined ? undefined : new LowerLayers(options.lower);
    this.#dataLimit = options.dataLimit ?? Number.POSITIVE_INFINITY;
    this.#resolved.set('', this.#root);
  }

  /** The result depends on the layers below, and is wrong over others. */
  get relative(): boolean {
    return this.#relative;
  }

  /** The layer has an entry for the root, which decides its owner and mode. */
  get rootEntry(): boolean {
    return this.#rootEntry;
  }

  /** The layer hides everything below it. Overlayfs ignores the attribute on a layer's root. */
  get opaqueRoot(): boolean {
    return this.#opaque.has(this.#root);
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
      if (entry.type !== 'directory') return;
      this.#rootEntry = true;
      this.#finishDirectory(this.#root, entry);
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
    for (const [path, mtime] of this.#directoryTimes) lutimesSync(fsPath(path), mtime, mtime);
  }

  /** Closes the open file after a failure. */
  abandon(): void {
    this.#file?.close();
    this.#file = undefined;
  }

  /** counts and sizes are refused from the header, before a byte is written. */
  #count(entry: TarEntry): void {
    this.#entries++;
    const dataBytes = entry.type === 'file' ? entry.size : 0;
    this.#dataBytes += dataBytes;
    if (this.#dataBytes > this.#dataLimit) throw bomb(this.#dataBytes);
    this.#grow(Math.max(dataBytes, entry.sparse?.realSize ?? 0));
    if (this.#entries > maxLayerEntries) {
      throw new DroverError('too-large', `a layer of the image has more than ${maxLayerEntries} entries`, { hint: 'use a smaller image' });
    }
  }

  #grow(bytes: number): void {
    this.#bytes += bytes;
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
          this.#create(path, () => openSync(fsPath(path), createFlags, 0o600)),
          path,
          entry,
        );
        return;
      case 'symlink':
        if (entry.linkPath === '') throw unsafe(entry.path, 'a symbolic link to nothing');
        this.#create(path, () => symlinkSync(fsPath(entry.linkPath), fsPath(path)));
        setOwner(path, entry);
        setAttributes(path, entry);
        lutimesSync(fsPath(path), entry.mtime, entry.mtime);
        return;
      case 'hardlink': {
        const components = split(entry.linkPath);
        const last = components.pop();
        if (last === undefined) throw unsafe(entry.path, 'a hard link to the root');
        const target = `${this.#directory(components, 0)}/${last}`;
        if (target === path) return;
        this.#bringUp(target, entry.linkPath);
        // link(2) does not follow a symbolic link: it links the link itself.
        try {
          this.#create(path, () => linkSync(fsPath(target), fsPath(path)));
        } catch (error) {
          if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'EPERM') {
            throw noSuchFile(entry.linkPath, error);
          }
          throw error;
        }
        return;
      }
      case 'character':
      case 'block':
      case 'fifo': {
        const { type } = entry;
        this.#create(path, () => makeNode(path, type, entry.deviceMajor, entry.deviceMinor));
        setOwner(path, entry);
        chmodSync(fsPath(path), entry.mode);
        setAttributes(path, entry);
        lutimesSync(fsPath(path), entry.mtime, entry.mtime);
        return;
      }
    }
  }

  #makeDirectory(path: string): void {
    try {
      mkdirSync(fsPath(path), 0o755);
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      if (lstatSync(fsPath(path)).isDirectory()) return;
      this.#replaceByDirectory(path);
    }
  }

  /** The replaced entry hid a lower directory of this name, so the new directory must hide it too. */
  #replaceByDirectory(path: string): void {
    this.#remove(path);
    mkdirSync(fsPath(path), 0o755);
    this.#hideLower(path);
  }

  #hideLower(directory: string): void {
    setAttribute(directory, opaqueAttribute, Buffer.from('y'));
    this.#opaque.add(directory);
  }

  /** The entry of the layers below at a path of this layer, whose parent is a real directory. @throws {NeedsLowerLayers} */
  #below(path: string): LowerEntry | undefined {
    if (this.#isInOpaque(path)) return undefined;
    this.#relative = true;
    if (this.#lower === undefined) throw new NeedsLowerLayers();
    return this.#lower.find(path.slice(this.#root.length + 1).split('/'));
  }

  #isInOpaque(path: string): boolean {
    for (let end = path.lastIndexOf('/'); end >= this.#root.length; end = path.lastIndexOf('/', end - 1)) {
      if (this.#opaque.has(path.slice(0, end))) return true;
    }
    return false;
  }

  /** Copies a lower file to its place in this layer, so that a hard link can name it. @throws {DroverError} corrupt-image */
  #bringUp(path: string, linkPath: string): void {
    const own = lstat(path);
    if (own !== undefined) {
      if (isWhiteout(own)) throw noSuchFile(linkPath);
      return;
    }
    const below = this.#below(path);
    if (below === undefined || below.status.isDirectory()) throw noSuchFile(linkPath);
    if (below.status.isFile()) this.#grow(below.status.size);
    copyUp(below, path);
  }

  #finishDirectory(path: string, entry: TarEntry): void {
    setOwner(path, entry);
    chmodSync(fsPath(path), entry.mode);
    setAttributes(path, entry);
    this.#directoryTimes.set(path, entry.mtime);
  }

  /** Makes an entry, in place of an existing one: the later entry of a tar wins. */
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
    rmSync(fsPath(path), { recursive: true, force: true });
    this.#resolved = new Map([['', this.#root]]);
    for (const known of this.#directoryTimes.keys()) {
      if (known === path || known.startsWith(`${path}/`)) this.#directoryTimes.delete(known);
    }
    for (const known of this.#opaque) if (known === path || known.startsWith(`${path}/`)) this.#opaque.delete(known);
  }

  /** image-spec layer.md, "Whiteouts": they hide entries of lower layers, not of this layer. */
  #whiteout(parent: string, marker: string): void {
    if (marker === '.wh..wh..opq') {
      this.#hideLower(parent);
      // In a directory that is not merged with a lower one, readdir would show them.
      for (const entry of readdirSync(fsPath(parent), { encoding: 'latin1' })) {
        const status = lstat(`${parent}/${entry}`);
        if (status !== undefined && isWhiteout(status)) rmSync(fsPath(`${parent}/${entry}`));
      }
      return;
    }
    // Bookkeeping of AUFS in old images (.wh..wh.aufs, .wh..wh.plnk, .wh..wh.orph).
    if (marker.startsWith('.wh..wh.')) return;
    const hidden = marker.slice('.wh.'.length);
    if (hidden === '' || hidden === '.' || hidden === '..') throw unsafe(marker, 'a whiteout of a directory above it');
    const path = `${parent}/${hidden}`;
    const own = lstat(path);
    // This layer's own entry stays, and hides the lower ones: a file does, and a directory that is opaque.
    if (own !== undefined) {
      if (own.isDirectory()) this.#hideLower(path);
      return;
    }
    // With nothing to hide, a directory that is not merged would show the marker.
    if (this.#opaque.has(parent) || (this.#lower !== undefined && this.#below(path) === undefined)) return;
    makeNode(path, 'character', 0, 0);
  }

  /**
   * The real directory for components below the root, made if it is absent. Links are resolved inside the root, those of lower layers too.
   * @throws {DroverError} unsafe-archive
   * @throws {NeedsLowerLayers}
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
        // From a link's target: clamped at the root, as in a chroot.
        depth = depth.slice(0, -1);
        current = [this.#root, ...depth].join('/');
        continue;
      }
      const next = `${current}/${component}`;
      const status = lstat(next);
      const below = status === undefined ? this.#below(next) : undefined;
      const found = status ?? below?.status;
      if (found?.isSymbolicLink() === true) {
        links++;
        if (links > maxLinksFollowed) throw unsafe(key, 'too many symbolic links on the way');
        const target = readlinkSync(fsPath(below?.path ?? next), 'latin1');
        if (target.startsWith('/')) {
          depth = [];
          current = this.#root;
        }
        waiting.unshift(...target.split('/').filter((part) => part !== '' && part !== '.'));
        continue;
      }
      if (status === undefined) this.#makeImplied(next, below);
      // A file in place of a directory: the later entry of a tar wins.
      else if (!status.isDirectory()) this.#replaceByDirectory(next);
      depth.push(component);
      current = next;
    }
    this.#resolved.set(key, current);
    return current;
  }

  /** Makes a directory that has no entry, with the lower directory's owner, mode and time. */
  #makeImplied(path: string, below: LowerEntry | undefined): void {
    mkdirSync(fsPath(path), 0o755);
    if (below?.status.isDirectory() !== true) return;
    copyMetadata(below, path);
    this.#directoryTimes.set(path, below.status.mtimeMs / 1000);
  }
}

const createFlags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;

/** A regular file that is being written. */
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
    fchownSync(this.#fd, uid, gid);
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

function lstat(path: string): Stats | undefined {
  return lstatSync(fsPath(path), { throwIfNoEntry: false });
}

/** For root's files too: in a directory with the setgid bit a file gets the directory's group. */
function setOwner(path: string, entry: TarEntry): void {
  lchownSync(fsPath(path), entry.uid, entry.gid);
}

/**
 * Sets the attributes that an image may have. `trusted.` attributes control overlayfs itself (redirects, opaque directories), so a layer must not
 * set them. Labels of the build machine (`security.selinux`, `security.ima`, …) have no meaning here.
 */
function setAttributes(path: string, entry: TarEntry): void {
  for (const [attribute, value] of entry.attributes) {
    const carried = attribute.startsWith('user.') ? !attribute.startsWith('user.overlay.') : carriedAttributes.has(attribute);
    if (!carried) continue;
    try {
      setAttribute(path, attribute, value);
    } catch (error) {
      // File systems without attributes, and user attributes on links and devices (xattr(7)): the file is correct without.
      if (errnoOf(error) === 'ENOTSUP' || (errnoOf(error) === 'EPERM' && attribute.startsWith('user.'))) continue;
      throw error;
    }
  }
}

const carriedAttributes = new Set(['security.capability', 'system.posix_acl_access', 'system.posix_acl_default']);

const noSuchFile = (linkPath: string, cause?: unknown): DroverError =>
  new DroverError('corrupt-image', `the layer has a hard link to ${show(linkPath)}, which is no file of the image`, {
    hint: 'pull or build the image again',
    cause,
  });

/** the layer expands more than honest data does. */
export function bomb(bytes: number): DroverError {
  return new DroverError('unsafe-archive', `the layer is refused: it expands to more than ${formatBytes(bytes)} from far fewer bytes`, {
    hint: 'do not trust where this image comes from',
  });
}

const show = (path: string): string => JSON.stringify(Buffer.from(path.slice(0, 200), 'latin1').toString('utf8'));

function unsafe(path: string, what: string): DroverError {
  return new DroverError('unsafe-archive', `the layer is refused: ${show(path)} is ${what}`, {
    hint: 'do not trust where this image comes from',
  });
}
