import { DroverError } from '@drover/foundation';
import { maxSparseSegments, maxTarHeaderBytes } from './limits.ts';
import { parseTime } from './times.ts';

/**
 * A tar parser: ustar, GNU (long names, sparse) and PAX (POSIX.1-2017, pax; sparse 0.0, 0.1 and 1.0 of GNU tar).
 *
 * Not tar-stream, which decodes PAX values as UTF-8 and so destroys file capabilities (`security.capability` of
 * cap_setuid has the byte 0x80), drops names that are not UTF-8, and cannot read GNU sparse files.
 * Here names, link targets and PAX values are byte strings in latin1: one character, one byte.
 */
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
  /** For a sparse file: its real size, and where its data goes. */
  readonly sparse: SparseMap | undefined;
}

export type TarType = 'file' | 'hardlink' | 'symlink' | 'character' | 'block' | 'directory' | 'fifo';

export interface SparseMap {
  readonly realSize: number;
  readonly segments: readonly { readonly offset: number; readonly size: number }[];
}

/** What the parser calls, in order: entry, data…, end, entry, … */
export interface TarHandler {
  entry(entry: TarEntry): void;
  data(chunk: Buffer): void;
  end(): void;
}

const block = 512;
const corrupt = (message: string): DroverError =>
  new DroverError('corrupt-image', `the archive is not a readable tar: ${message}`, { hint: 'pull or save the image again' });
const unsafe = (message: string): DroverError =>
  new DroverError('unsafe-archive', `the archive is refused: ${message}`, { hint: 'do not trust where this image comes from' });

/** A number field: octal text, or base 256 when the first bit is set (GNU). */
function numberField(header: Buffer, offset: number, length: number): number {
  const first = header[offset] ?? 0;
  if ((first & 0x80) !== 0) {
    if ((first & 0x40) !== 0) return -1;
    let value = first & 0x3f;
    for (let i = 1; i < length; i++) value = value * 256 + (header[offset + i] ?? 0);
    if (!Number.isSafeInteger(value)) throw corrupt('a number is too large');
    return value;
  }
  const text = textField(header, offset, length).trim();
  if (text === '') return 0;
  if (!/^[0-7]+$/.test(text)) throw corrupt('a number is not octal');
  return Number.parseInt(text, 8);
}

function textField(header: Buffer, offset: number, length: number): string {
  const end = header.indexOf(0, offset);
  return header.toString('latin1', offset, end === -1 || end > offset + length ? offset + length : end);
}

interface RawHeader {
  readonly name: string;
  readonly flag: string;
  readonly linkName: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtime: number;
  readonly major: number;
  readonly minor: number;
}

function checksumHolds(header: Buffer): boolean {
  let sum = 8 * 32;
  for (let i = 0; i < 148; i++) sum += header[i] as number;
  for (let i = 156; i < block; i++) sum += header[i] as number;
  return sum === numberField(header, 148, 8);
}

function isZero(header: Buffer): boolean {
  for (let i = 0; i < block; i++) if (header[i] !== 0) return false;
  return true;
}

function readHeader(header: Buffer): RawHeader {
  if (!checksumHolds(header)) throw corrupt('a header has a wrong checksum');
  const ustar = header.toString('latin1', 257, 263) === 'ustar\0';
  const prefix = ustar ? textField(header, 345, 155) : '';
  const name = textField(header, 0, 100);
  const flag = header[156] === 0 ? '0' : String.fromCharCode(header[156] as number);
  return {
    name: prefix === '' ? name : `${prefix}/${name}`,
    flag,
    linkName: textField(header, 157, 100),
    mode: numberField(header, 100, 8),
    uid: numberField(header, 108, 8),
    gid: numberField(header, 116, 8),
    size: numberField(header, 124, 12),
    mtime: numberField(header, 136, 12),
    // Some writers leave rubbish here for what is no device.
    major: flag === '3' || flag === '4' ? numberField(header, 329, 8) : 0,
    minor: flag === '3' || flag === '4' ? numberField(header, 337, 8) : 0,
  };
}

/** PAX records in order; keys may repeat (sparse 0.0). */
function readPax(data: Buffer): [string, string][] {
  const records: [string, string][] = [];
  let at = 0;
  while (at < data.length) {
    const space = data.indexOf(0x20, at);
    const length = space === -1 ? Number.NaN : Number(data.toString('latin1', at, space));
    if (!Number.isInteger(length) || length < 5 || at + length > data.length || data[at + length - 1] !== 0x0a) {
      throw corrupt('a PAX record is malformed');
    }
    const record = data.toString('latin1', space + 1, at + length - 1);
    const equals = record.indexOf('=');
    if (equals <= 0) throw corrupt('a PAX record has no key');
    records.push([record.slice(0, equals), record.slice(equals + 1)]);
    at += length;
  }
  return records;
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

const attributePrefixes = ['SCHILY.xattr.', 'LIBARCHIVE.xattr.'];

function wholeNumber(text: string, what: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) throw corrupt(`${what} is not a number`);
  return value;
}

/** Checks that the segments lie in order inside the file and that their data is what the archive has. */
function checkSparse(map: SparseMap, dataBytes: number): SparseMap {
  let end = 0;
  let sum = 0;
  for (const { offset, size } of map.segments) {
    if (offset < end || offset + size > map.realSize) throw corrupt('the map of a sparse file is wrong');
    end = offset + size;
    sum += size;
  }
  if (sum !== dataBytes) throw corrupt('the map of a sparse file does not fit its data');
  return map;
}

type State = 'header' | 'extension' | 'oldSparse' | 'sparseMap' | 'data' | 'padding' | 'end';

/** Takes an archive in chunks of any size and calls the handler; synchronous. */
export class TarParser {
  readonly #handler: TarHandler;
  #state: State = 'header';
  /** Bytes of an unfinished block, or of an extension. */
  #held: Buffer[] = [];
  #heldBytes = 0;
  #wanted = block;
  #padding = 0;
  #raw: RawHeader | undefined;
  #longName: string | undefined;
  #longLink: string | undefined;
  #pax: [string, string][] = [];
  readonly #global = new Map<string, string>();
  #globalBytes = 0;
  #segments: { offset: number; size: number }[] = [];
  #realSize = 0;
  #remaining = 0;

  constructor(handler: TarHandler) {
    this.#handler = handler;
  }

  /** @throws {DroverError} corrupt-image, unsafe-archive, and what the handler throws */
  write(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#state === 'end') return;
      if (this.#state === 'data') {
        const take = Math.min(this.#remaining, chunk.length - at);
        this.#handler.data(at === 0 && take === chunk.length ? chunk : chunk.subarray(at, at + take));
        at += take;
        this.#remaining -= take;
        if (this.#remaining === 0) this.#endData();
        continue;
      }
      if (this.#state === 'padding') {
        const take = Math.min(this.#padding, chunk.length - at);
        at += take;
        this.#padding -= take;
        if (this.#padding === 0) this.#expect('header', block);
        continue;
      }
      const take = Math.min(this.#wanted - this.#heldBytes, chunk.length - at);
      const part = chunk.subarray(at, at + take);
      at += take;
      if (this.#heldBytes === 0 && take === this.#wanted) {
        this.#take(part);
        continue;
      }
      // Copied: the chunk may be reused by whoever gave it.
      this.#held.push(Buffer.from(part));
      this.#heldBytes += take;
      if (this.#heldBytes === this.#wanted) {
        const whole = this.#held.length === 1 ? (this.#held[0] as Buffer) : Buffer.concat(this.#held);
        this.#take(whole);
      }
    }
  }

  /** For a reader that seeks: goes on as if the entry's data and its padding had been given. */
  skipData(): void {
    if (this.#state !== 'data') return;
    this.#remaining = 0;
    this.#padding = 0;
    this.#endData();
  }

  /**
   * The archive has ended. Its trailer may be missing, and the padding after its last file, as in what `umoci insert` writes; Go's
   * archive/tar, which containerd, Docker and umoci read with, takes both.
   * @throws {DroverError} corrupt-image when it ends in the middle of a header or of data
   */
  end(): void {
    if (
      this.#state === 'end' ||
      this.#state === 'padding' ||
      (this.#state === 'header' && this.#heldBytes === 0 && this.#raw === undefined)
    )
      return;
    throw corrupt('it ends in the middle');
  }

  #expect(state: State, bytes: number): void {
    this.#state = state;
    this.#wanted = bytes;
    this.#held = [];
    this.#heldBytes = 0;
  }

  #take(bytes: Buffer): void {
    switch (this.#state) {
      case 'header':
        this.#takeHeader(bytes);
        return;
      case 'extension':
        this.#takeExtension(bytes);
        return;
      case 'oldSparse': {
        const more = this.#readOldSparse(bytes, 0, 21);
        if (more && bytes[504] === 1) this.#expect('oldSparse', block);
        else this.#begin();
        return;
      }
      case 'sparseMap':
        this.#takeSparseMap(bytes);
        return;
      default:
        throw corrupt('it is out of step');
    }
  }

  #takeHeader(header: Buffer): void {
    if (header[0] === 0 && isZero(header)) {
      this.#expect('end', 0);
      return;
    }
    const raw = readHeader(header);
    if (raw.size < 0) throw corrupt('a size is negative');
    this.#raw = raw;
    if (raw.flag === 'x' || raw.flag === 'g' || raw.flag === 'L' || raw.flag === 'K') {
      if (raw.size > maxTarHeaderBytes) throw unsafe('an extended header is too long');
      if (raw.size === 0) this.#expect('header', block);
      else this.#expect('extension', Math.ceil(raw.size / block) * block);
      return;
    }
    this.#segments = [];
    if (raw.flag === 'S') {
      // Old GNU sparse: the map stands in the header and in blocks after it.
      this.#realSize = numberField(header, 483, 12);
      const more = this.#readOldSparse(header, 386, 4);
      if (more && header[482] === 1) this.#expect('oldSparse', block);
      else this.#begin();
      return;
    }
    this.#begin();
  }

  #readOldSparse(bytes: Buffer, start: number, count: number): boolean {
    for (let i = 0; i < count; i++) {
      const at = start + i * 24;
      if (bytes[at] === 0) return false;
      this.#segments.push({ offset: numberField(bytes, at, 12), size: numberField(bytes, at + 12, 12) });
    }
    if (this.#segments.length > maxSparseSegments) throw unsafe('a sparse file has too many segments');
    return true;
  }

  #takeExtension(bytes: Buffer): void {
    const { flag, size } = this.#raw as RawHeader;
    const data = bytes.subarray(0, size);
    const text = (): string => textField(data, 0, data.length);
    if (flag === 'L') this.#longName = text();
    else if (flag === 'K') this.#longLink = text();
    else if (flag === 'x') this.#pax = readPax(data);
    else this.#addGlobal(readPax(data));
    this.#expect('header', block);
  }

  /** Records of a global header hold for every later entry: together they are bounded as those of one entry are. */
  #addGlobal(records: readonly [string, string][]): void {
    for (const [key, value] of records) {
      const replaced = this.#global.get(key);
      this.#globalBytes += value.length + (replaced === undefined ? key.length : -replaced.length);
      this.#global.set(key, value);
    }
    if (this.#globalBytes > maxTarHeaderBytes) throw unsafe('its global headers are too long');
  }

  #entry: TarEntry | undefined;

  /** All headers of an entry are there. */
  #begin(): void {
    const raw = this.#raw as RawHeader;
    const pax = new Map(this.#global);
    const offsets: number[] = [];
    const sizes: number[] = [];
    const attributes = new Map<string, Buffer>();
    for (const [key, value] of this.#pax) {
      pax.set(key, value);
      if (key === 'GNU.sparse.offset') offsets.push(wholeNumber(value, 'a sparse offset'));
      if (key === 'GNU.sparse.numbytes') sizes.push(wholeNumber(value, 'a sparse size'));
      const prefix = attributePrefixes.find((p) => key.startsWith(p));
      if (prefix === 'SCHILY.xattr.') attributes.set(key.slice(prefix.length), Buffer.from(value, 'latin1'));
      else if (prefix !== undefined && !attributes.has(key.slice(prefix.length))) {
        attributes.set(decodeURIComponent(key.slice(prefix.length)), Buffer.from(value, 'base64'));
      }
    }
    const size = pax.has('size') ? wholeNumber(pax.get('size') as string, 'a size') : raw.size;
    const path = pax.get('GNU.sparse.name') ?? pax.get('path') ?? this.#longName ?? raw.name;
    let type = typesByFlag[raw.flag];
    // Before ustar, a directory was a file with a slash at its end.
    if (type === 'file' && raw.flag === '0' && path.endsWith('/')) type = 'directory';
    const hasData = type === 'file' || type === undefined;
    this.#remaining = hasData ? size : 0;
    // POSIX lets a hard link carry the file's data again; it is skipped.
    const skipped = type === 'hardlink' && pax.has('size') ? size : type === 'hardlink' ? raw.size : 0;
    this.#padding = hasData ? (block - (size % block)) % block : Math.ceil(skipped / block) * block;

    const realSize = pax.get('GNU.sparse.realsize') ?? pax.get('GNU.sparse.size');
    if (raw.flag !== 'S' && realSize !== undefined) {
      this.#realSize = wholeNumber(realSize, 'a size');
      if (offsets.length !== sizes.length) throw corrupt('the map of a sparse file is wrong');
      this.#segments = offsets.map((offset, i) => ({ offset, size: sizes[i] as number }));
      const map = pax.get('GNU.sparse.map');
      if (map !== undefined) {
        const numbers = map === '' ? [] : map.split(',').map((n) => wholeNumber(n, 'a sparse offset'));
        if (numbers.length % 2 !== 0) throw corrupt('the map of a sparse file is wrong');
        this.#segments = [];
        for (let i = 0; i < numbers.length; i += 2) this.#segments.push({ offset: numbers[i] as number, size: numbers[i + 1] as number });
      }
      if (this.#segments.length > maxSparseSegments) throw unsafe('a sparse file has too many segments');
    }
    const entry: TarEntry = {
      path,
      type: type ?? 'file',
      linkPath: pax.get('linkpath') ?? this.#longLink ?? raw.linkName,
      mode: raw.mode & 0o7777,
      uid: pax.has('uid') ? wholeNumber(pax.get('uid') as string, 'an owner') : raw.uid,
      gid: pax.has('gid') ? wholeNumber(pax.get('gid') as string, 'a group') : raw.gid,
      mtime: pax.has('mtime') ? Number(pax.get('mtime')) : raw.mtime,
      mtimeNs: pax.has('mtime') ? (parseTime(pax.get('mtime') as string) ?? 0n) : BigInt(raw.mtime) * 1_000_000_000n,
      size,
      deviceMajor: raw.major,
      deviceMinor: raw.minor,
      attributes,
      sparse: undefined,
    };
    if (!Number.isFinite(entry.mtime)) throw corrupt('a time is not a number');
    if (path.includes('\0') || entry.linkPath.includes('\0')) throw unsafe('a name has a zero byte');
    this.#longName = undefined;
    this.#longLink = undefined;
    this.#pax = [];
    if (type === undefined) {
      // A type that POSIX leaves to vendors (volume labels, multi-volume parts) is no file; its data is passed over.
      this.#raw = undefined;
      this.#padding += this.#remaining;
      this.#remaining = 0;
      this.#skip();
      return;
    }
    if (type === 'file' && (raw.flag === 'S' || realSize !== undefined)) {
      this.#entry = entry;
      if (raw.flag !== 'S' && pax.get('GNU.sparse.major') === '1') {
        this.#sparseText = '';
        this.#sparseLines = 0;
        this.#sparseCount = undefined;
        this.#expect('sparseMap', block);
        return;
      }
      this.#start({ ...entry, sparse: checkSparse({ realSize: this.#realSize, segments: this.#segments }, size) });
      return;
    }
    this.#start(entry);
  }

  #sparseText = '';
  /** Line ends in it. */
  #sparseLines = 0;
  /** Segments, once its first line is there. */
  #sparseCount: number | undefined;

  /** GNU sparse 1.0: the map stands before the data, as decimal lines, in whole blocks. */
  #takeSparseMap(bytes: Buffer): void {
    this.#sparseText += bytes.toString('latin1');
    this.#remaining -= block;
    if (this.#remaining < 0 || this.#sparseText.length > maxTarHeaderBytes * 32) throw corrupt('the map of a sparse file is wrong');
    for (const byte of bytes) if (byte === 0x0a) this.#sparseLines++;
    if (this.#sparseCount === undefined && this.#sparseLines > 0) {
      this.#sparseCount = wholeNumber(this.#sparseText.slice(0, this.#sparseText.indexOf('\n')), 'a sparse map');
      if (this.#sparseCount > maxSparseSegments) throw unsafe('a sparse file has too many segments');
    }
    const count = this.#sparseCount;
    // Split once it is whole: at each block, an archive of some megabytes would occupy its reader for hours.
    if (count === undefined || this.#sparseLines < 1 + count * 2) {
      this.#expect('sparseMap', block);
      return;
    }
    const lines = this.#sparseText.split('\n');
    const segments = [];
    for (let i = 0; i < count; i++) {
      segments.push({
        offset: wholeNumber(lines[1 + 2 * i] as string, 'a sparse offset'),
        size: wholeNumber(lines[2 + 2 * i] as string, 'a sparse size'),
      });
    }
    const entry = { ...(this.#entry as TarEntry), size: this.#remaining };
    this.#start({ ...entry, sparse: checkSparse({ realSize: this.#realSize, segments }, this.#remaining) });
  }

  #start(entry: TarEntry): void {
    this.#raw = undefined;
    this.#entry = undefined;
    this.#handler.entry(entry);
    if (this.#remaining > 0) {
      this.#expect('data', 0);
      return;
    }
    this.#endData();
  }

  #endData(): void {
    this.#handler.end();
    this.#skip();
  }

  #skip(): void {
    if (this.#padding > 0) this.#expect('padding', 0);
    else this.#expect('header', block);
  }
}
