import { createReadStream } from 'node:fs';
import { lstat, readdir, readlink } from 'node:fs/promises';
import { basename, join, posix, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { DroverError, errnoOf, hasCode } from '@drover/foundation';
import type { api } from '@drover/protocol';
import type { DroverClient } from '@drover/sdk';
import { extract, pack, type Header, type Pack } from 'tar-stream';
import type { Cli } from '../cli.ts';
import { notCopied } from './copy-out.ts';

/**
 * As cp -R: onto a directory in the sandbox (or a path that ends in `/`) it goes into it under its own name,
 * else it becomes the path. `-` unpacks a tar stream from stdin below the path.
 */
export async function copyIn(cli: Cli, source: string, reference: string, target: string): Promise<api.CopyInResponse> {
  if (source === '-') {
    const client = await cli.connect();
    return client.sandboxes.copyIn(reference, target, process.stdin as AsyncIterable<Uint8Array>, cli.signal);
  }
  const path = resolve(source);
  const stats = await lstat(path).catch((error: unknown) => {
    throw new DroverError('path-not-found', `${source} cannot be read (${errnoOf(error) ?? 'unreadable'})`, {
      hint: 'check the path here; one in a sandbox is written SANDBOX:PATH',
      cause: error,
    });
  });
  if (!stats.isFile() && !stats.isDirectory() && !stats.isSymbolicLink()) throw notCopied(source);
  const client = await cli.connect();
  const into = target.endsWith('/') || target === '.' || (await isDirectory(client, reference, target, cli.signal));
  const directory = into ? target : posix.dirname(target);
  const name = into ? basename(path) : posix.basename(target);
  const tar = pack();
  const writing = add(tar, path, name).then(
    () => tar.finalize(),
    (error: Error) => tar.destroy(error),
  );
  const answer = await client.sandboxes.copyIn(reference, directory, tar as unknown as AsyncIterable<Uint8Array>, cli.signal);
  await writing;
  return answer;
}

/** Asked of the tar that a copy out would begin with: images need not have any program that could tell. */
async function isDirectory(client: DroverClient, reference: string, path: string, signal: AbortSignal): Promise<boolean> {
  const stream = client.sandboxes.copyOut(reference, path, signal);
  const tar = extract();
  try {
    stream.on('error', (error) => tar.destroy(error));
    stream.pipe(tar);
    for await (const entry of tar) return entry.header.type === 'directory';
    return false;
  } catch (error) {
    if (hasCode(error, 'path-not-found')) return false;
    throw error;
  } finally {
    stream.destroy();
  }
}

async function add(tar: Pack, path: string, name: string): Promise<void> {
  const stats = await lstat(path);
  const header: Partial<Header> & Pick<Header, 'name'> = { name, mode: stats.mode & 0o7777, mtime: stats.mtime, uid: 0, gid: 0 };
  if (stats.isDirectory()) {
    await entry(tar, { ...header, name: `${name}/`, type: 'directory' });
    for (const child of (await readdir(path)).sort()) await add(tar, join(path, child), `${name}/${child}`);
  } else if (stats.isSymbolicLink()) {
    await entry(tar, { ...header, type: 'symlink', linkname: await readlink(path) });
  } else if (stats.isFile()) {
    if (stats.size === 0) return entry(tar, { ...header, type: 'file', size: 0 });
    // A file that grows meanwhile is cut to the size in its header.
    await pipeline(createReadStream(path, { end: stats.size - 1 }), tar.entry({ ...header, type: 'file', size: stats.size }));
  }
  // Sockets, pipes and devices mean nothing elsewhere; as cp -R on another file system, they stay behind.
}

/** One without content. */
function entry(tar: Pack, header: Partial<Header> & Pick<Header, 'name'>): Promise<void> {
  return new Promise((resolve_, reject) => {
    // Without the empty content, that of a file is waited for.
    tar.entry(header, '', (error) => (error == null ? resolve_() : reject(error)));
  });
}
