import { createHash } from 'node:crypto';
import { createReadStream, type ReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import type { Duplex } from 'node:stream';
import { constants as zlibConstants, createGunzip, createZstdDecompress } from 'node:zlib';
import { DroverError, errnoOf } from '@drover/foundation';
import { expansionFreeBytes, maxLayerExpansion } from '../../limits.ts';
import { parseDigest } from '../digest.ts';
import { bomb, LayerWriter } from './layer-writer.ts';
import { TarParser } from '@drover/archive';

/** The bytes of a layer: a file, or a part of one (an archive's entry). */
export interface LayerFile {
  readonly path: string;
  readonly offset: number;
  readonly size: number;
  /** Digest of the stored bytes, unless it was verified already. */
  readonly digest: string | undefined;
}

export interface UnpackedLayer {
  readonly diffId: string;
  /** Sum of the files' sizes. */
  readonly bytes: number;
  readonly entries: number;
  /** See LayerWriter. */
  readonly relative: boolean;
  readonly rootEntry: boolean;
  readonly opaqueRoot: boolean;
}

const chunkBytes = 512 * 1024;

/**
 * Unpacks a layer into an empty directory and verifies it while reading. Its first bytes decide between plain, gzip and zstd tar:
 * the media types of some images are wrong.
 * @param diffId the digest that the uncompressed layer must have (image-spec config.md)
 * @param lower the unpacked layers below, lowest first; absent: they are not unpacked yet
 * @throws {DroverError} corrupt-image, unsafe-archive, too-large, disk-full
 * @throws {NeedsLowerLayers} when the layer depends on `lower` and that is absent
 */
export async function unpackLayer(
  file: LayerFile,
  directory: string,
  diffId: string | undefined,
  lower?: readonly string[],
): Promise<UnpackedLayer> {
  // one rule for every codec: they compress runs of zeros very differently.
  const dataLimit = Math.max(expansionFreeBytes, file.size * maxLayerExpansion);
  const writer = new LayerWriter(directory, { lower, dataLimit });
  const parser = new TarParser(writer);
  const unpacked = createHash(diffId === undefined ? 'sha256' : parseDigest(diffId).algorithm);
  const packed = file.digest === undefined ? undefined : createHash(parseDigest(file.digest).algorithm);
  const format = await formatOf(file);
  let unpackedBytes = 0;
  const source = createReadStream(file.path, {
    start: file.offset,
    end: file.offset + Math.max(0, file.size - 1),
    highWaterMark: chunkBytes,
  });
  const count = (chunk: Buffer): void => {
    packed?.update(chunk);
  };
  try {
    for await (const chunk of decompress(file.size === 0 ? undefined : source, format, count)) {
      unpackedBytes += chunk.length;
      // Files are refused by their headers, before a byte of them is written; this bounds everything else.
      if (unpackedBytes > dataLimit) throw bomb(unpackedBytes);
      unpacked.update(chunk);
      parser.write(chunk);
    }
    parser.end();
    writer.finish();
  } catch (error) {
    writer.abandon();
    throw readable(error);
  } finally {
    source.destroy();
  }
  if (packed !== undefined) expectDigest(`${parseDigest(file.digest as string).algorithm}:${packed.digest('hex')}`, file.digest as string);
  const found = `${diffId === undefined ? 'sha256' : parseDigest(diffId).algorithm}:${unpacked.digest('hex')}`;
  if (diffId !== undefined) expectDigest(found, diffId);
  const { bytes, entries, relative, rootEntry, opaqueRoot } = writer;
  return { diffId: found, bytes, entries, relative, rootEntry, opaqueRoot };
}

function expectDigest(found: string, expected: string): void {
  if (found === expected) return;
  throw new DroverError('corrupt-image', `a layer of the image has the digest ${found} instead of ${expected}`, {
    hint: 'pull or save the image again; if the error repeats, the image was built wrongly',
  });
}

type Format = 'gzip' | 'zstd' | 'tar';

async function formatOf(file: LayerFile): Promise<Format> {
  const handle = await open(file.path, 'r');
  try {
    const head = Buffer.alloc(4);
    const { bytesRead } = await handle.read(head, 0, Math.min(4, file.size), file.offset);
    return formatOfBytes(head.subarray(0, bytesRead));
  } finally {
    await handle.close();
  }
}

/** RFC 1952 2.3.1; RFC 8878 3.1.1 and, for skippable frames, 3.1.2. */
export function formatOfBytes(head: Buffer): Format {
  if (head.length >= 2 && head[0] === 0x1f && head[1] === 0x8b) return 'gzip';
  if (head.length >= 4) {
    const magic = head.readUInt32LE(0);
    if (magic === 0xfd2fb528 || (magic & 0xfffffff0) >>> 0 === 0x184d2a50) return 'zstd';
  }
  return 'tar';
}

/** Bounds the memory that a zstd frame may require: 2^27, the default of the reference tool. */
const zstdOptions = { chunkSize: chunkBytes, params: { [zlibConstants.ZSTD_d_windowLogMax]: 27 } };

async function* decompress(source: ReadStream | undefined, format: Format, count: (chunk: Buffer) => void): AsyncGenerator<Buffer> {
  if (source === undefined) return;
  if (format === 'tar') {
    for await (const chunk of source as AsyncIterable<Buffer>) {
      count(chunk);
      yield chunk;
    }
    return;
  }
  const inflate: Duplex = format === 'gzip' ? createGunzip({ chunkSize: chunkBytes }) : createZstdDecompress(zstdOptions);
  source.on('data', (chunk) => count(chunk as Buffer));
  source.on('error', (error) => inflate.destroy(error));
  source.pipe(inflate);
  try {
    yield* inflate as AsyncIterable<Buffer>;
  } finally {
    inflate.destroy();
  }
}

/** Errors of zlib and of the file system, translated for an image. */
function readable(error: unknown): unknown {
  if (error instanceof DroverError || !(error instanceof Error)) return error;
  const code = 'code' in error ? String(error.code) : '';
  if (/^Z_|^ZSTD_|ERR_.*(ZLIB|ZSTD)/.test(code)) {
    return new DroverError('corrupt-image', `a layer of the image cannot be decompressed: ${error.message}`, {
      hint: 'pull or save the image again',
      cause: error,
    });
  }
  if (['ENAMETOOLONG', 'ELOOP', 'EINVAL', 'ENOTDIR'].includes(errnoOf(error) ?? '')) {
    return new DroverError('unsafe-archive', `the layer is refused: ${error.message}`, {
      hint: 'do not trust where this image comes from',
      cause: error,
    });
  }
  return DroverError.from(error, 'corrupt-image');
}
