import { DroverError } from '@drover/foundation';
import { maxSparseSegments, maxTarHeaderBytes } from './limits.ts';
import { blockBytes, corrupt, numberField, wholeNumber, type PaxRecords } from './tar-header.ts';

/** Where the data of a sparse file goes. */
export interface SparseMap {
  readonly realSize: number;
  readonly segments: readonly Segment[];
}

export interface Segment {
  readonly offset: number;
  readonly size: number;
}

export const unsafe = (message: string): DroverError =>
  new DroverError('unsafe-archive', `the archive is refused: ${message}`, { hint: 'do not trust where this image comes from' });

const wrongMap = (): DroverError => corrupt('the map of a sparse file is wrong');

/** Checks that the segments lie in order inside the file, and that their data is what the archive has. @throws {DroverError} corrupt-image */
export function checkSparse(map: SparseMap, dataBytes: number): SparseMap {
  let end = 0;
  let sum = 0;
  for (const { offset, size } of map.segments) {
    if (offset < end || offset + size > map.realSize) throw wrongMap();
    end = offset + size;
    sum += size;
  }
  if (sum !== dataBytes) throw corrupt('the map of a sparse file does not fit its data');
  return map;
}

/**
 * Old GNU format: the map is in the header, and in blocks after it.
 * @param header whose map ends without a continuation when the byte after it is not 1
 */
export function* oldSparseMap(header: Buffer): Generator<number, SparseMap, Buffer> {
  const segments: Segment[] = [];
  let [bytes, start, count, next] = [header, 386, 4, 482];
  for (;;) {
    for (let i = 0, at = start; i < count; i++, at += 24) {
      if (bytes[at] === 0) return { realSize: numberField(header, 483, 12), segments };
      segments.push({ offset: numberField(bytes, at, 12), size: numberField(bytes, at + 12, 12) });
    }
    checkCount(segments.length);
    if (bytes[next] !== 1) return { realSize: numberField(header, 483, 12), segments };
    bytes = yield blockBytes;
    [start, count, next] = [0, 21, 504];
  }
}

/**
 * PAX formats, for a file whose records have them.
 * @param size bytes of the entry's data, with the map of format 1.0
 * @returns the map, if there is one, and the bytes of data without it
 */
export function* paxSparseMap(
  records: PaxRecords,
  size: number,
): Generator<number, { readonly sparse: SparseMap | undefined; readonly dataBytes: number }, Buffer> {
  const pax = new Map(records);
  const realSizeText = pax.get('GNU.sparse.realsize') ?? pax.get('GNU.sparse.size');
  if (realSizeText === undefined) return { sparse: undefined, dataBytes: size };
  const realSize = wholeNumber(realSizeText, 'a size');
  if (pax.get('GNU.sparse.major') === '1') return yield* sparseMapInData(realSize, size);
  return { sparse: checkSparse({ realSize, segments: paxSparseSegments(records) }, size), dataBytes: size };
}

/** PAX formats 0.0 and 0.1: the map is in the records. @throws {DroverError} corrupt-image, unsafe-archive */
function paxSparseSegments(records: PaxRecords): readonly Segment[] {
  const valuesOf = (key: string): readonly string[] => records.flatMap(([name, value]) => (name === key ? [value] : []));
  const map = valuesOf('GNU.sparse.map').at(-1);
  const numbers = (map === '' ? [] : map?.split(','))?.map((text) => wholeNumber(text, 'a sparse offset'));
  const offsets =
    numbers?.filter((_, i) => i % 2 === 0) ?? valuesOf('GNU.sparse.offset').map((text) => wholeNumber(text, 'a sparse offset'));
  const sizes = numbers?.filter((_, i) => i % 2 === 1) ?? valuesOf('GNU.sparse.numbytes').map((text) => wholeNumber(text, 'a sparse size'));
  if (offsets.length !== sizes.length) throw wrongMap();
  checkCount(offsets.length);
  return offsets.map((offset, i) => ({ offset, size: sizes[i] as number }));
}

/** PAX format 1.0: the map precedes the data, as decimal lines in whole blocks. */
function* sparseMapInData(realSize: number, size: number): Generator<number, { sparse: SparseMap; dataBytes: number }, Buffer> {
  let text = '';
  let lineEnds = 0;
  let count: number | undefined;
  let dataBytes = size;
  // Split when it is complete: at every block, an archive of some megabytes would occupy its reader for hours.
  while (count === undefined || lineEnds < 1 + count * 2) {
    const bytes = yield blockBytes;
    text += bytes.toString('latin1');
    dataBytes -= blockBytes;
    if (dataBytes < 0 || text.length > maxTarHeaderBytes * 32) throw wrongMap();
    for (const byte of bytes) if (byte === 0x0a) lineEnds++;
    if (count === undefined && lineEnds > 0) {
      count = wholeNumber(text.slice(0, text.indexOf('\n')), 'a sparse map');
      checkCount(count);
    }
  }
  const lines = text.split('\n');
  const segments = Array.from({ length: count }, (_, i) => ({
    offset: wholeNumber(lines[1 + 2 * i] as string, 'a sparse offset'),
    size: wholeNumber(lines[2 + 2 * i] as string, 'a sparse size'),
  }));
  return { sparse: checkSparse({ realSize, segments }, dataBytes), dataBytes };
}

function checkCount(segments: number): void {
  if (segments > maxSparseSegments) throw unsafe('a sparse file has too many segments');
}
