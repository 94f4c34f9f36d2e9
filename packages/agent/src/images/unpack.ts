import { createHash } from 'node:crypto';
import { createReadStream, type ReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import type { Duplex } from 'node:stream';
import { constants as zlibConstants, createGunzip, createZstdDecompress } from 'node:zlib';
import { DroverError, errnoOf, formatBytes } from '@drover/foundation';
import { expansionFreeBytes, maxLayerExpansion } from '../limits.ts';
import { parseDigest } from './digest.ts';
import { LayerWriter } from './layer-writer.ts';
import { TarParser } from './tar.ts';

/** Where a layer's bytes are: a file, or a part of one (an archive's entry). */
export interface LayerFile {
  readonly path: string;
  readonly offset: number;
  readonly size: number;
  /** Digest of the bytes as they are, when it was not verified yet. */
  readonly digest: string | undefined;
}

export interface UnpackedLayer {
  readonly diffId: string;
  /** Sum of the files' sizes. */
  readonly bytes: number;
  readonly entries: number;
}

const chunkBytes = 512 * 1024;

/**
 * Unpacks a layer into an empty directory and verifies it while reading: plain, gzip or zstd tar, known by its
 * first bytes, since media types in the wild are not always true.
 * @param diffId the digest that the uncompressed layer must have (image-spec config.md)
 * @throws {DroverError} corrupt-image, unsafe-archive, too-large, disk-full
 */
export async function unpackLayer(
  file: LayerFile,
  directory: string,
  diffId: string | undefined,
  signal?: AbortSignal,
): Promise<UnpackedLayer> {
  const writer = new LayerWriter(directory);
  const parser = new TarParser(writer);
  const unpacked = createHash(diffId === undefined ? 'sha256' : parseDigest(diffId).algorithm);
  const packed = file.digest === undefined ? undefined : createHash(parseDigest(file.digest).algorithm);
  const format = await formatOf(file);
  let packedBytes = 0;
  let unpackedBytes = 0;
  const source = createReadStream(file.path, {
    start: file.offset,
    end: file.offset + Math.max(0, file.size - 1),
    highWaterMark: chunkBytes,
  });
  const count = (chunk: Buffer): void => {
    packedBytes += chunk.length;
    packed?.update(chunk);
  };
  try {
    for await (const chunk of decompress(file.size === 0 ? undefined : source, format, count)) {
      signal?.throwIfAborted();
      unpackedBytes += chunk.length;
      // a bomb is refused while it is still small.
      if (unpackedBytes > expansionFreeBytes && unpackedBytes > Math.max(packedBytes, 1) * maxLayerExpansion) {
        throw new DroverError(
          'unsafe-archive',
          `the layer is refused: ${formatBytes(packedBytes)} of it unpack to more than ${formatBytes(unpackedBytes)}`,
          { hint: 'do not trust where this image comes from' },
        );
      }
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
  return { diffId: found, bytes: writer.bytes, entries: writer.entries };
}

function expectDigest(found: string, expected: string): void {
  if (found === expected) return;
  throw new DroverError('corrupt-image', `a layer of the image has the digest ${found} instead of ${expected}`, {
    hint: 'pull or save the image again; if it stays so, the image was built wrongly',
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

/** Memory that a zstd frame may ask for is bounded: 2^27, what the reference tool takes by default. */
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

/** Errors of zlib and of the file system, as what they mean for an image. */
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
