import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, readdir, rename, rm, stat, truncate, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { Backoff, DroverError, errnoOf, type Clock } from '@drover/foundation';
import { maxRegistryTries, partialKeptMs } from '../../limits.ts';
import { fileNameOf, parseDigest } from '../digest.ts';

/** Opens a blob at an offset; the returned offset is where the bytes begin (0: a server without ranges). */
export type OpenBlob = (
  offset: number,
  signal: AbortSignal,
) => Promise<{ readonly offset: number; readonly stream: AsyncIterable<Uint8Array> }>;

/**
 * Packed layers while they are needed: `blobs/<algorithm>-<hex>` is whole and verified, or absent. `partial/<algorithm>-<hex>` is an
 * unfinished download; it outlives a failure of the download or the agent, and the next try resumes it. The caller makes sure that a digest
 * has one download.
 */
export class BlobStore {
  readonly #blobs: string;
  readonly #partial: string;
  readonly #clock: Clock;

  constructor(options: { readonly blobs: string; readonly partial: string; readonly clock: Clock }) {
    this.#blobs = options.blobs;
    this.#partial = options.partial;
    this.#clock = options.clock;
  }

  path(digest: string): string {
    return join(this.#blobs, fileNameOf(digest));
  }

  async remove(digest: string): Promise<void> {
    await rm(this.path(digest), { force: true });
    await rm(this.#partialPath(digest), { force: true });
  }

  /** Removes the progress of earlier builds, while `isIdle`: a build may begin meanwhile. @returns freed bytes */
  async clear(isIdle: () => boolean): Promise<number> {
    let freed = 0;
    for (const directory of [this.#blobs, this.#partial]) {
      for (const file of await readdir(directory)) {
        const path = join(directory, file);
        const size = (await sizeOf(path)) ?? 0;
        if (!isIdle()) return freed;
        await rm(path, { force: true });
        freed += size;
      }
    }
    return freed;
  }

  /** Removes abandoned downloads. */
  async sweep(): Promise<void> {
    for (const file of await readdir(this.#partial)) {
      const path = join(this.#partial, file);
      if (this.#clock.now() - (await stat(path)).mtimeMs > partialKeptMs) await rm(path, { force: true });
    }
  }

  /**
   * The path of the whole, verified blob, whose missing part is downloaded.
   * @throws {DroverError} corrupt-image, disk-full, registry-unreachable, and the errors of `openBlob`
   */
  async fetch(
    descriptor: { readonly digest: string; readonly size: number },
    openBlob: OpenBlob,
    onBytes: (doneBytes: number) => void,
    signal: AbortSignal,
  ): Promise<string> {
    const { digest, size } = descriptor;
    const whole = this.path(digest);
    if ((await sizeOf(whole)) === size) {
      onBytes(size);
      return whole;
    }
    const partial = this.#partialPath(digest);
    const resumed = (await sizeOf(partial)) ?? 0;
    try {
      await this.#download(partial, descriptor, openBlob, onBytes, signal);
    } catch (error) {
      if (resumed === 0 || !(error instanceof DroverError) || error.code !== 'corrupt-image') throw error;
      // A crash may have damaged the resumed part: try again from the start.
      await this.#download(partial, descriptor, openBlob, onBytes, signal);
    }
    await rename(partial, whole);
    await syncDirectory(this.#blobs);
    return whole;
  }

  #partialPath(digest: string): string {
    return join(this.#partial, fileNameOf(digest));
  }

  async #download(
    partial: string,
    { digest, size }: { readonly digest: string; readonly size: number },
    openBlob: OpenBlob,
    onBytes: (doneBytes: number) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const { algorithm } = parseDigest(digest);
    if (((await sizeOf(partial)) ?? 0) > size) await rm(partial, { force: true });
    const file = await open(partial, 'a', 0o600);
    try {
      let hash = createHash(algorithm);
      let done = (await file.stat()).size;
      if (done > 0) await addFile(hash, partial);
      onBytes(done);
      const backoff = new Backoff({ baseMs: 200, capMs: 5000 });
      while (done < size) {
        const before = done;
        try {
          const response = await openBlob(done, signal);
          if (response.offset !== done) {
            await truncate(partial, 0);
            hash = createHash(algorithm);
            done = 0;
          }
          for await (const chunk of response.stream) {
            if (done + chunk.length > size) {
              throw corruptBlob(digest, `is longer than the ${size} bytes of its manifest`);
            }
            hash.update(chunk);
            await appendAll(file, chunk);
            done += chunk.length;
            onBytes(done);
          }
          if (done < size)
            throw new DroverError('registry-unreachable', `the registry closed the connection after ${done} of ${size} bytes`);
        } catch (error) {
          signal.throwIfAborted();
          if (!isInterruption(error)) throw error;
          if (done > before) backoff.reset();
          if (backoff.attempts >= maxRegistryTries - 1) throw asUnreachable(error);
          await this.#clock.sleep(backoff.nextMs(), signal);
        }
      }
      const found = `${algorithm}:${hash.digest('hex')}`;
      if (found !== digest) throw corruptBlob(digest, `has the digest ${found}`);
      await file.sync();
    } catch (error) {
      // A full disk must not stay full of an unfinished download, and corrupt bytes stay corrupt.
      const known = DroverError.from(error, 'registry-unreachable');
      if (known.code === 'disk-full' || known.code === 'corrupt-image') await rm(partial, { force: true });
      throw known;
    } finally {
      await file.close();
    }
  }
}

function corruptBlob(digest: string, what: string): DroverError {
  return new DroverError('corrupt-image', `the layer ${digest} that the registry sent ${what}`, {
    hint: 'try again; if the error repeats, the registry or the network path damages the image',
  });
}

/** A cut or silent connection, after which the download can be resumed. */
function isInterruption(error: unknown): boolean {
  if (error instanceof DroverError) return error.code === 'registry-unreachable';
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  return code.startsWith('UND_ERR_') || ['ECONNRESET', 'ECONNREFUSED', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH'].includes(code);
}

function asUnreachable(error: unknown): DroverError {
  if (error instanceof DroverError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new DroverError('registry-unreachable', `the download of a layer was interrupted repeatedly: ${message}`, {
    hint: 'try again: it continues where it stopped',
    cause: error,
  });
}

async function appendAll(file: FileHandle, chunk: Uint8Array): Promise<void> {
  let at = 0;
  while (at < chunk.length) at += (await file.write(chunk, at, chunk.length - at)).bytesWritten;
}

async function addFile(hash: Hash, path: string): Promise<void> {
  for await (const chunk of createReadStream(path, { highWaterMark: 1024 * 1024 })) hash.update(chunk as Buffer);
}

async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** Makes a rename in the directory survive a power cut. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
