import { chmod, lchown, link, lstat, lutimes, mkdir, open, realpath, rm, symlink } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { DroverError, clip, errnoOf } from '@drover/foundation';
import type { init } from '@drover/protocol';
import type { Extract, Header } from 'tar-stream';
import { maxCopyEntries } from '../limits.ts';
import type { Call, Reply } from '../server/call.ts';
import { placeBelow, unsafe } from './paths.ts';

/** Unpacks a tar stream below a directory of the sandbox, making the directory when it is missing. @throws {DroverError} unsafe-archive, too-large, disk-full */
export async function copyIn(call: Call<init.CopyInRequest, Reply<'copyIn'>>, workdir: string): Promise<void> {
  const requests = call.requests[Symbol.asyncIterator]();
  const first = await requests.next();
  if (first.done === true || first.value.payload.case !== 'path')
    throw new DroverError('protocol-violation', 'the first message must name the path');
  const root = await directory(resolve(workdir, first.value.payload.value));
  // Loaded here: most sandboxes never copy.
  const { extract } = await import('tar-stream');
  const unpack = extract();
  const feeding = feed(tarBytes(requests), unpack, call.signal);
  // Its failure also ends the loop below, which tells it.
  feeding.catch(() => undefined);
  let entries = 0;
  let bytes = 0;
  const directories: { readonly path: string; readonly header: Header }[] = [];
  for await (const entry of unpack) {
    entries++;
    if (entries > maxCopyEntries) throw new DroverError('too-large', `the archive has more than ${maxCopyEntries} entries`);
    const { header } = entry;
    const path = await placeBelow(root, header.name);
    if (header.type === 'directory') {
      await mkdir(path, { recursive: true });
      // Last, so that a read-only one can be filled.
      if (path !== root) directories.push({ path, header });
    } else {
      await mkdir(dirname(path), { recursive: true });
      bytes += await unpackEntry(root, path, header, entry as unknown as AsyncIterable<Buffer>);
    }
    entry.resume();
  }
  await feeding;
  for (const { path, header } of directories.reverse()) await dress(path, header);
  await call.send({ entries: BigInt(entries), bytes: BigInt(bytes) });
}

async function directory(path: string): Promise<string> {
  try {
    await mkdir(path, { recursive: true });
    return await realpath(path);
  } catch (error) {
    const code = errnoOf(error);
    if (code !== 'EEXIST' && code !== 'ENOTDIR') throw error;
    throw new DroverError('invalid-argument', `${clip(path)} in the sandbox is not a directory`, {
      hint: 'copy into a directory',
      cause: error,
    });
  }
}

/** Not `stream.pipeline`: it takes the end of the loop over the entries, which closes the stream, for a broken one. */
async function feed(bytes: AsyncIterable<Uint8Array>, unpack: Extract, signal: AbortSignal): Promise<void> {
  const abort = (): void => unpack.destroy(signal.reason as Error);
  signal.addEventListener('abort', abort, { once: true });
  try {
    for await (const chunk of bytes) {
      if (unpack.destroyed) return;
      if (!unpack.write(chunk)) {
        await new Promise<void>((resolve) => {
          unpack.once('drain', resolve);
          unpack.once('close', resolve);
        });
      }
    }
    unpack.end(undefined);
  } catch (error) {
    unpack.destroy(DroverError.from(error));
    throw error;
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

async function* tarBytes(requests: AsyncIterator<init.CopyInRequest>): AsyncGenerator<Uint8Array, void, undefined> {
  for (;;) {
    const next = await requests.next();
    if (next.done === true) return;
    if (next.value.payload.case !== 'tar') throw new DroverError('protocol-violation', 'only tar bytes may follow the path');
    yield next.value.payload.value;
  }
}

/** Puts one entry in place of whatever stands there; gives its size. */
async function unpackEntry(root: string, path: string, header: Header, data: AsyncIterable<Buffer>): Promise<number> {
  const { name, linkname } = header;
  const standing = await lstat(path).catch(() => undefined);
  if (standing?.isDirectory() === true) throw unsafe(name, 'would replace a directory by something else');
  await rm(path, { force: true });
  switch (header.type) {
    case 'file':
    case 'contiguous-file':
    case null:
    case undefined:
      await writeData(path, data);
      break;
    case 'symlink':
      // May point anywhere, as in any file system; what follows it is checked when it is followed.
      await symlink(linkname ?? '', path);
      break;
    case 'link':
      await link(await placeBelow(root, linkname ?? ''), path);
      return 0;
    default:
      throw unsafe(name, `is a ${header.type}, which cannot be copied`);
  }
  await dress(path, header);
  return header.type === 'symlink' ? 0 : (header.size ?? 0);
}

async function writeData(path: string, data: AsyncIterable<Buffer>): Promise<void> {
  // Exclusive: a link that appeared meanwhile is not followed.
  const file = await open(path, 'wx', 0o600);
  try {
    for await (const chunk of data) await file.writeFile(chunk);
  } catch (error) {
    // The caller went away, or the disk is full: nobody takes half a file for the whole one.
    await rm(path, { force: true });
    throw error;
  } finally {
    await file.close();
  }
}

async function dress(path: string, header: Header): Promise<void> {
  try {
    await lchown(path, header.uid ?? 0, header.gid ?? 0);
  } catch (error) {
    // An id that this user namespace does not have: the file stays with the sandbox's root.
    const code = errnoOf(error);
    if (code !== 'EINVAL' && code !== 'EPERM') throw error;
  }
  if (header.type !== 'symlink') await chmod(path, (header.mode ?? 0o644) & 0o7777);
  if (header.mtime !== undefined) await lutimes(path, header.mtime, header.mtime);
}
