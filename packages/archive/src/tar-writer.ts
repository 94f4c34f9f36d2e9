import { floorSeconds, nanoseconds, timeText } from './times.ts';
import type { SparseMap } from './sparse.ts';
import { bytesOf } from './names.ts';

/**
 * An entry of an archive in ustar, with a PAX header (POSIX.1-2017, pax) for values that do not fit ustar. Extended attributes are
 * `SCHILY.xattr.` records, and sparse files have GNU's format 1.0, as GNU tar and bsdtar read them. Names are written byte for byte.
 */
export interface TarHeader {
  /** A byte string. The name of a directory ends in `/`. */
  readonly name: string;
  readonly type: 'file' | 'directory' | 'symlink' | 'hardlink';
  readonly linkName?: string;
  /** Permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Nanoseconds since the epoch. */
  readonly mtimeNs: bigint;
  /** Bytes of data that follow; of a sparse file, those of its segments. */
  readonly size?: number;
  readonly attributes?: ReadonlyMap<string, Buffer>;
  readonly sparse?: SparseMap;
}

const block = 512;
/** The largest numbers of ustar's octal fields. */
const maxOctal7 = 0o7777777;
const maxOctal11 = 0o77777777777;
const flags = { file: '0', hardlink: '1', symlink: '2', directory: '5' } as const;

/** The end of an archive: two blocks of zeros. */
export const tarEnd = Buffer.alloc(2 * block);

export function tarPadding(size: number): Buffer {
  return tarEnd.subarray(0, (block - (size % block)) % block);
}

/** The headers of an entry, and for a sparse file the map that precedes its data. */
export function tarHeader(entry: TarHeader): Buffer {
  const { type, linkName = '', sparse, attributes } = entry;
  const map = sparse === undefined ? Buffer.alloc(0) : sparseMap(sparse);
  const size = (entry.size ?? 0) + map.length;
  const records: [string, Buffer][] = [];
  const record = (key: string, value: string | Buffer): void => void records.push([key, Buffer.from(value)]);
  for (const [key, value] of attributes ?? []) record(`SCHILY.xattr.${key}`, value);
  let name = split(entry.name);
  if (sparse !== undefined) {
    record('GNU.sparse.major', '1');
    record('GNU.sparse.minor', '0');
    record('GNU.sparse.name', bytesOf(entry.name));
    record('GNU.sparse.realsize', String(sparse.realSize));
  } else if (name === undefined) record('path', bytesOf(entry.name));
  name ??= split(entry.name.slice(-100)) ?? { prefix: '', name: '' };
  if (linkName.length > 100) record('linkpath', bytesOf(linkName));
  if (size > maxOctal11) record('size', String(size));
  if (entry.uid > maxOctal7) record('uid', String(entry.uid));
  if (entry.gid > maxOctal7) record('gid', String(entry.gid));
  const seconds = floorSeconds(entry.mtimeNs);
  const isWhole = seconds * nanoseconds === entry.mtimeNs;
  if (!isWhole || seconds < 0n || seconds > BigInt(maxOctal11)) record('mtime', timeText(entry.mtimeNs));

  const header = {
    ...name,
    flag: flags[type] as string,
    linkName: linkName.slice(0, 100),
    mode: entry.mode,
    uid: Math.min(entry.uid, maxOctal7),
    gid: Math.min(entry.gid, maxOctal7),
    size: Math.min(size, maxOctal11),
    seconds: seconds < 0n ? 0 : Math.min(Number(seconds), maxOctal11),
  };
  const blocks: Buffer[] = [];
  if (records.length > 0) {
    const pax = Buffer.concat(records.map(([key, value]) => paxRecord(key, value)));
    const place = { name: 'PaxHeader', prefix: '', flag: 'x', linkName: '', mode: 0o644, uid: 0, gid: 0, seconds: 0 };
    blocks.push(headerBlock({ ...place, size: pax.length }), pax, tarPadding(pax.length));
  }
  blocks.push(headerBlock(header), map);
  return Buffer.concat(blocks);
}

interface Fields {
  readonly prefix: string;
  readonly name: string;
  readonly flag: string;
  readonly linkName: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly seconds: number;
}

function headerBlock(fields: Fields): Buffer {
  const header = Buffer.alloc(block);
  header.write(fields.name, 0, 100, 'latin1');
  octal(header, 100, 8, fields.mode);
  octal(header, 108, 8, fields.uid);
  octal(header, 116, 8, fields.gid);
  octal(header, 124, 12, fields.size);
  octal(header, 136, 12, fields.seconds);
  header.write('        ', 148, 8, 'latin1');
  header.write(fields.flag, 156, 1, 'latin1');
  header.write(fields.linkName, 157, 100, 'latin1');
  header.write('ustar\x0000', 257, 8, 'latin1');
  header.write(fields.prefix, 345, 155, 'latin1');
  let sum = 0;
  for (const byte of header) sum += byte;
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 8, 'latin1');
  return header;
}

function octal(header: Buffer, at: number, length: number, value: number): void {
  header.write(`${value.toString(8).padStart(length - 1, '0')}\0`, at, length, 'latin1');
}

/** A name as ustar's name and prefix, divided at a slash; undefined when it does not fit. */
function split(name: string): { readonly name: string; readonly prefix: string } | undefined {
  if (name.length <= 100) return { name, prefix: '' };
  // The last slash that leaves a short enough prefix. The slash at the end of a directory's name does not divide it.
  const at = name.lastIndexOf('/', 155);
  const rest = name.slice(at + 1);
  return at > 0 && rest !== '' && rest.length <= 100 ? { name: rest, prefix: name.slice(0, at) } : undefined;
}

/** `LENGTH KEY=VALUE\n`, where the length counts itself. */
function paxRecord(key: string, value: Buffer): Buffer {
  const rest = Buffer.byteLength(key) + value.length + 3;
  let length = rest + String(rest).length;
  length = rest + String(length).length;
  return Buffer.concat([Buffer.from(`${length} ${key}=`), value, Buffer.from('\n')]);
}

/** Decimal lines in whole blocks: the number of segments, then offset and size of each. For GNU tar a file ends at its last segment. */
function sparseMap({ realSize, segments }: SparseMap): Buffer {
  const last = segments.at(-1);
  const all = last !== undefined && last.offset + last.size === realSize ? segments : [...segments, { offset: realSize, size: 0 }];
  const text = Buffer.from([all.length, ...all.flatMap(({ offset, size }) => [offset, size])].map((n) => `${n}\n`).join(''));
  return Buffer.concat([text, tarPadding(text.length)]);
}
