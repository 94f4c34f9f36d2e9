import { maxTarHeaderBytes } from './limits.ts';
import { checkSparse, oldSparseMap, paxSparseMap, unsafe, type SparseMap } from './sparse.ts';
import { blockBytes, corrupt, readHeader, readPax, textField, wholeNumber, type PaxRecords, type RawHeader } from './tar-header.ts';
import { nanoseconds, parseTime } from './times.ts';

/** An entry of an archive. Names, link targets and PAX values are byte strings in latin1: one character is one byte. */
export interface TarEntry {
  readonly path: string;
  readonly type: TarType;
  readonly linkPath: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Seconds since the epoch. */
  readonly mtime: number;
  /** The same, exactly: nanoseconds. */
  readonly mtimeNs: bigint;
  /** Bytes of data in the archive. */
  readonly size: number;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
  /** Extended attributes, by name. */
  readonly attributes: ReadonlyMap<string, Buffer>;
  readonly sparse: SparseMap | undefined;
}

export type TarType = 'file' | 'hardlink' | 'symlink' | 'character' | 'block' | 'directory' | 'fifo';

/** The parser calls, in this order: entry, data…, end, entry, … */
export interface TarHandler {
  entry(entry: TarEntry): void;
  data(chunk: Buffer): void;
  end(): void;
}

/** Headers that precede the header of an entry. */
interface Extensions {
  longName?: string;
  longLink?: string;
  pax?: PaxRecords;
}

const typesByFlag: Record<string, TarType> = {
  '0': 'file',
  '7': 'file',
  S: 'file',
  '1': 'hardlink',
  '2': 'symlink',
  '3': 'character',
  '4': 'block',
  '5': 'directory',
  '6': 'fifo',
};

/**
 * A synchronous tar parser for chunks of any size: ustar, GNU (long names, sparse) and PAX (POSIX.1-2017, pax; sparse 0.0, 0.1 and 1.0 of GNU
 * tar).
 *
 * Not tar-stream, which decodes PAX values as UTF-8 and so destroys file capabilities (`security.capability` of cap_setuid has the byte 0x80),
 * drops names that are not UTF-8, and cannot read GNU sparse files (docs/decisions/0004).
 */
export class TarParser {
  readonly #handler: TarHandler;
  /** Yields how many bytes it needs next, as one buffer. */
  readonly #headers: Generator<number, void, Buffer>;
  #needed: number;
  /** What has arrived of these bytes. */
  #held: Buffer[] = [];
  #heldBytes = 0;
  /** Bytes of the current entry's data, and of what follows it up to the next header, that have not arrived. */
  #dataBytes = 0;
  #padding = 0;
  #isInHeaders = false;
  #isAtEnd = false;
  /** Records of global headers, which hold for every later entry. */
  readonly #global = new Map<string, string>();
  #globalBytes = 0;

  constructor(handler: TarHandler) {
    this.#handler = handler;
    this.#headers = this.#parse();
    this.#needed = this.#headers.next().value ?? 0;
  }

  /** @throws {DroverError} corrupt-image, unsafe-archive, and what the handler throws */
  write(chunk: Buffer): void {
    for (let at = 0; at < chunk.length && !this.#isAtEnd; ) {
      const rest = at === 0 ? chunk : chunk.subarray(at);
      if (this.#dataBytes > 0) at += this.#passData(rest);
      else if (this.#padding > 0) {
        const skipped = Math.min(this.#padding, rest.length);
        this.#padding -= skipped;
        at += skipped;
      } else at += this.#collect(rest);
    }
  }

  /** For a reader that seeks: continues after the entry's data and its padding. */
  skipData(): void {
    if (this.#dataBytes === 0) return;
    this.#dataBytes = 0;
    this.#padding = 0;
    this.#handler.end();
  }

  /**
   * The archive has ended. Its trailer may be absent, and the padding after its last file, as in what `umoci insert` writes; Go's archive/tar,
   * which containerd, Docker and umoci read with, accepts both.
   * @throws {DroverError} corrupt-image when it ends in the middle of a header or of data
   */
  end(): void {
    if (!this.#isAtEnd && (this.#dataBytes > 0 || this.#heldBytes > 0 || this.#isInHeaders)) throw corrupt('it ends in the middle');
  }

  #passData(chunk: Buffer): number {
    const data = chunk.length <= this.#dataBytes ? chunk : chunk.subarray(0, this.#dataBytes);
    this.#handler.data(data);
    this.#dataBytes -= data.length;
    if (this.#dataBytes === 0) this.#handler.end();
    return data.length;
  }

  /** Passes headers to the parser as a whole. */
  #collect(chunk: Buffer): number {
    const part = chunk.subarray(0, this.#needed - this.#heldBytes);
    if (part.length === this.#needed) {
      this.#advance(part);
      return part.length;
    }
    // Copied: the caller may reuse the chunk.
    this.#held.push(Buffer.from(part));
    this.#heldBytes += part.length;
    if (this.#heldBytes === this.#needed) {
      const whole = Buffer.concat(this.#held);
      this.#held = [];
      this.#heldBytes = 0;
      this.#advance(whole);
    }
    return part.length;
  }

  #advance(bytes: Buffer): void {
    const { done = false, value } = this.#headers.next(bytes);
    this.#isAtEnd = done;
    this.#needed = value ?? 0;
  }

  *#parse(): Generator<number, void, Buffer> {
    let extensions: Extensions = {};
    for (;;) {
      const header = yield blockBytes;
      if (header[0] === 0 && header.every((byte) => byte === 0)) return;
      this.#isInHeaders = true;
      const raw = readHeader(header);
      if (raw.flag === 'x' || raw.flag === 'g' || raw.flag === 'L' || raw.flag === 'K') {
        if (raw.size > maxTarHeaderBytes) throw unsafe('an extended header is too long');
        if (raw.size === 0) continue;
        const data = (yield Math.ceil(raw.size / blockBytes) * blockBytes).subarray(0, raw.size);
        if (raw.flag === 'L') extensions.longName = textField(data, 0, data.length);
        else if (raw.flag === 'K') extensions.longLink = textField(data, 0, data.length);
        else if (raw.flag === 'x') extensions.pax = readPax(data);
        else this.#addGlobal(readPax(data));
        continue;
      }
      yield* this.#entry(raw, header, extensions);
      extensions = {};
      this.#isInHeaders = false;
    }
  }

  /** Global records together are bounded as those of one entry are. */
  #addGlobal(records: PaxRecords): void {
    for (const [key, value] of records) {
      const replaced = this.#global.get(key);
      this.#globalBytes += value.length + (replaced === undefined ? key.length : -replaced.length);
      this.#global.set(key, value);
    }
    if (this.#globalBytes > maxTarHeaderBytes) throw unsafe('its global headers are too long');
  }

  *#entry(raw: RawHeader, header: Buffer, extensions: Extensions): Generator<number, void, Buffer> {
    const old = raw.flag === 'S' ? yield* oldSparseMap(header) : undefined;
    const records = [...this.#global, ...(extensions.pax ?? [])];
    const pax = new Map(records);
    const { type, ...entry } = entryOf(raw, pax, extensions);
    const { size } = entry;
    const paddedSize = Math.ceil(size / blockBytes) * blockBytes;
    // POSIX leaves some types to vendors (volume labels, multi-volume parts), and lets a hard link carry the file's data again. Both are skipped.
    if (type === undefined) {
      this.#padding = paddedSize;
      return;
    }
    if (type !== 'file') {
      this.#begin({ ...entry, type }, 0, type === 'hardlink' ? paddedSize : 0);
      return;
    }
    const { sparse, dataBytes } =
      old === undefined ? yield* paxSparseMap(records, size) : { sparse: checkSparse(old, size), dataBytes: size };
    this.#begin({ ...entry, type, size: dataBytes, sparse }, dataBytes, paddedSize - size);
  }

  #begin(entry: TarEntry, dataBytes: number, padding: number): void {
    this.#handler.entry(entry);
    this.#dataBytes = dataBytes;
    this.#padding = padding;
    if (dataBytes === 0) this.#handler.end();
  }
}

/** An entry without the map of a sparse file. Its type is undefined for a flag that is not in POSIX. @throws {DroverError} corrupt-image, unsafe-archive */
function entryOf(
  raw: RawHeader,
  pax: ReadonlyMap<string, string>,
  { longName, longLink, pax: records = [] }: Extensions,
): Omit<TarEntry, 'type'> & { readonly type: TarType | undefined } {
  const number = (key: string, what: string): number | undefined => {
    const text = pax.get(key);
    return text === undefined ? undefined : wholeNumber(text, what);
  };
  const path = pax.get('GNU.sparse.name') ?? pax.get('path') ?? longName ?? raw.name;
  const linkPath = pax.get('linkpath') ?? longLink ?? raw.linkName;
  if (path.includes('\0') || linkPath.includes('\0')) throw unsafe('a name has a zero byte');
  const time = pax.get('mtime');
  const mtime = time === undefined ? raw.mtime : Number(time);
  if (!Number.isFinite(mtime)) throw corrupt('a time is not a number');
  return {
    path,
    // Before ustar, a directory was a file with a slash at its end.
    type: raw.flag === '0' && path.endsWith('/') ? 'directory' : typesByFlag[raw.flag],
    linkPath,
    mode: raw.mode & 0o7777,
    uid: number('uid', 'an owner') ?? raw.uid,
    gid: number('gid', 'a group') ?? raw.gid,
    mtime,
    mtimeNs: time === undefined ? BigInt(raw.mtime) * nanoseconds : (parseTime(time) ?? 0n),
    size: number('size', 'a size') ?? raw.size,
    deviceMajor: raw.major,
    deviceMinor: raw.minor,
    attributes: attributesIn(records),
    sparse: undefined,
  };
}

/** Extended attributes: star's and GNU tar's records, or else libarchive's. */
function attributesIn(records: PaxRecords): ReadonlyMap<string, Buffer> {
  const attributes = new Map<string, Buffer>();
  for (const [key, value] of records) {
    if (key.startsWith('LIBARCHIVE.xattr.')) {
      const name = percentDecoded(key.slice('LIBARCHIVE.xattr.'.length));
      if (!attributes.has(name)) attributes.set(name, Buffer.from(value, 'base64'));
    } else if (key.startsWith('SCHILY.xattr.')) attributes.set(key.slice('SCHILY.xattr.'.length), Buffer.from(value, 'latin1'));
  }
  return attributes;
}

function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw corrupt('the name of an attribute is malformed');
  }
}
