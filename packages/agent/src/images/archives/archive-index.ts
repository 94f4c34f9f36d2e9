import { randomBytes } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { open, rm, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { DroverError, formatBytes } from '@drover/foundation';
import { maxArchiveEntries, maxBlobBytes } from '../../limits.ts';
import { TarParser, type TarEntry } from '@drover/archive';
import { formatOfBytes } from '../unpack/unpack.ts';

/** The files of an image archive, read in place. */
export interface ArchiveIndex extends AsyncDisposable {
  /** The part of a file that a member is; links are followed. Undefined: no such member. */
  member(name: string): { readonly path: string; readonly offset: number; readonly size: number } | undefined;
  /** A small member's content. @throws {DroverError} corrupt-image, too-large */
  read(name: string, limit: number): Promise<Buffer>;
}

/** @param scratch a directory for the decompressed archive, when it is compressed as a whole */
export async function indexArchive(path: string, scratch: string, signal: AbortSignal): Promise<ArchiveIndex> {
  const plain = await decompressed(path, scratch, signal);
  const file = await open(plain, 'r');
  const dispose = async (): Promise<void> => {
    await file.close();
    if (plain !== path) await rm(plain, { force: true });
  };
  try {
    const members = await readMembers(file, signal);
    const find = (name: string, links = 0): { path: string; offset: number; size: number } | undefined => {
      const member = members.get(clean(name));
      if (member === undefined || links > 8) return undefined;
      if (member.link !== undefined) return find(member.link, links + 1);
      return { path: plain, offset: member.offset, size: member.size };
    };
    return {
      member: (name) => find(name),
      async read(name, limit) {
        const member = find(name);
        if (member === undefined) {
          throw new DroverError('corrupt-image', `the archive ${path} has no ${name}`, { hint: 'is it an image? save it again' });
        }
        if (member.size > limit) {
          throw new DroverError('too-large', `${name} in ${path} has more than ${formatBytes(limit)}`, {
            hint: 'is it an image? save it again',
          });
        }
        const data = Buffer.alloc(member.size);
        await file.read(data, 0, member.size, member.offset);
        return data;
      },
      [Symbol.asyncDispose]: dispose,
    };
  } catch (error) {
    await dispose();
    throw error;
  }
}

interface Member {
  readonly offset: number;
  readonly size: number;
  readonly link: string | undefined;
}

/** `./a//b/../c` as `a/c`; a path out of the archive finds nothing. */
function clean(name: string): string {
  const parts: string[] = [];
  for (const part of name.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '' && part !== '.') parts.push(part);
  }
  return parts.join('/');
}

/** Reads headers only, and skips over the data between them. */
async function readMembers(file: FileHandle, signal: AbortSignal): Promise<Map<string, Member>> {
  const members = new Map<string, Member>();
  const { size: total } = await file.stat();
  const seen: { entry: TarEntry | undefined } = { entry: undefined };
  let ended = false;
  const parser = new TarParser({
    entry: (entry) => {
      seen.entry = entry;
    },
    data: () => {},
    end: () => {},
  });
  const block = Buffer.alloc(512);
  let at = 0;
  while (at < total && !ended) {
    signal.throwIfAborted();
    const { bytesRead } = await file.read(block, 0, 512, at);
    if (bytesRead === 0) break;
    ended = block[0] === 0 && block.every((byte) => byte === 0);
    parser.write(block.subarray(0, bytesRead));
    at += bytesRead;
    const { entry } = seen;
    if (entry === undefined) continue;
    seen.entry = undefined;
    const isFile = entry.type === 'file' && entry.sparse === undefined;
    const offset = at;
    const size = isFile ? entry.size : 0;
    if (isFile || entry.type === 'symlink' || entry.type === 'hardlink') {
      const base = entry.type === 'symlink' ? `${entry.path}/../` : '';
      members.set(clean(utf8(entry.path)), { offset, size, link: isFile ? undefined : utf8(`${base}${entry.linkPath}`) });
    }
    if (members.size > maxArchiveEntries) {
      throw new DroverError('unsafe-archive', `the archive has more than ${maxArchiveEntries} files`, {
        hint: 'is it an image? save it again',
      });
    }
    if (isFile && entry.size > 0) {
      if (offset + entry.size > total)
        throw new DroverError('corrupt-image', 'the archive ends in the middle of a file', { hint: 'save it again' });
      at += Math.ceil(entry.size / 512) * 512;
      parser.skipData();
    }
  }
  parser.end();
  return members;
}

const utf8 = (text: string): string => Buffer.from(text, 'latin1').toString('utf8');

/** An archive that is compressed as a whole (`docker save | gzip`) is decompressed into a file first. */
async function decompressed(path: string, scratch: string, signal: AbortSignal): Promise<string> {
  const file = await open(path, 'r');
  const head = Buffer.alloc(4);
  try {
    await file.read(head, 0, 4, 0);
  } finally {
    await file.close();
  }
  const format = formatOfBytes(head);
  if (format === 'tar') return path;
  const target = join(scratch, `archive-${randomBytes(6).toString('hex')}.tar`);
  let size = 0;
  try {
    await pipeline(
      createReadStream(path),
      format === 'gzip' ? createGunzip() : createZstdDecompress(),
      async function* (chunks: AsyncIterable<Buffer>) {
        for await (const chunk of chunks) {
          size += chunk.length;
          if (size > maxBlobBytes)
            throw new DroverError('too-large', `the archive ${path} unpacks to too much`, { hint: 'use a smaller image' });
          yield chunk;
        }
      },
      createWriteStream(target, { mode: 0o600 }),
      { signal },
    );
    return target;
  } catch (error) {
    await rm(target, { force: true });
    signal.throwIfAborted();
    throw DroverError.from(error, 'corrupt-image');
  }
}
