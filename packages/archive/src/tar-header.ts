import { DroverError } from '@drover/foundation';

/** A tar stream consists of blocks of this size. */
export const blockBytes = 512;

export const corrupt = (message: string): DroverError =>
  new DroverError('corrupt-image', `the archive is not a readable tar: ${message}`, { hint: 'pull or save the image again' });

/** The fields of a ustar or GNU header. */
export interface RawHeader {
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

/** @throws {DroverError} corrupt-image */
export function readHeader(header: Buffer): RawHeader {
  if (!hasChecksum(header)) throw corrupt('a header has a wrong checksum');
  const isUstar = header.toString('latin1', 257, 263) === 'ustar\0';
  const prefix = isUstar ? textField(header, 345, 155) : '';
  const name = textField(header, 0, 100);
  const flag = header[156] === 0 ? '0' : String.fromCharCode(header[156] as number);
  // Some writers leave other data in the device numbers of other types.
  const isDevice = flag === '3' || flag === '4';
  const raw = {
    name: prefix === '' ? name : `${prefix}/${name}`,
    flag,
    linkName: textField(header, 157, 100),
    mode: numberField(header, 100, 8),
    uid: numberField(header, 108, 8),
    gid: numberField(header, 116, 8),
    size: numberField(header, 124, 12),
    mtime: numberField(header, 136, 12),
    major: isDevice ? numberField(header, 329, 8) : 0,
    minor: isDevice ? numberField(header, 337, 8) : 0,
  };
  if (raw.size < 0) throw corrupt('a size is negative');
  return raw;
}

function hasChecksum(header: Buffer): boolean {
  let sum = 8 * 32;
  for (let i = 0; i < 148; i++) sum += header[i] as number;
  for (let i = 156; i < blockBytes; i++) sum += header[i] as number;
  return sum === numberField(header, 148, 8);
}

/** A number field: octal text, or base 256 when the first bit is set (GNU); -1 for a negative number. */
export function numberField(header: Buffer, offset: number, length: number): number {
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

export function textField(header: Buffer, offset: number, length: number): string {
  const end = header.indexOf(0, offset);
  return header.toString('latin1', offset, end === -1 || end > offset + length ? offset + length : end);
}

export type PaxRecords = readonly (readonly [key: string, value: string])[];

/** PAX records in their order; keys may repeat (sparse 0.0). @throws {DroverError} corrupt-image */
export function readPax(data: Buffer): PaxRecords {
  const records: [string, string][] = [];
  for (let at = 0; at < data.length; ) {
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

/** A decimal number of a PAX record or a sparse map. @throws {DroverError} corrupt-image */
export function wholeNumber(text: string, what: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) throw corrupt(`${what} is not a number`);
  return value;
}
