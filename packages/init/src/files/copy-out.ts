import { lstat, open, readdir, readlink } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { once } from 'node:events';
import type { Stats } from 'node:fs';
import { DroverError, clip, errnoOf } from '@drover/foundation';
import type { init } from '@drover/protocol';
import type { Pack } from 'tar-stream';
import { maxChunkBytes } from '../limits.ts';
import type { Call, Reply } from '../server/call.ts';

/**
 * A tar stream of a file or directory of the sandbox; names in it begin with the path's last part (`.` for the root).
 * Sockets, fifos and devices are left out: they mean nothing elsewhere. @throws {DroverError} path-not-found
 */
export async function copyOut(call: Call<init.CopyOutRequest, Reply<'copyOut'>>, workdir: string): Promise<void> {
  let path: string | undefined;
  for await (const request of call.requests) path = request.path;
  if (path === undefined) throw new DroverError('protocol-violation', 'the request is missing');
  const from = resolve(workdir, path);
  const stats = await lstat(from).catch((error: unknown) => {
    throw notFound(from, error);
  });
  const { pack } = await import('tar-stream');
  const archive = pack();
  const packing = packTree(archive, from, basename(from) || '.', stats, call.signal).then(
    () => archive.finalize(),
    (error: unknown) => archive.destroy(error instanceof Error ? error : new Error(String(error))),
  );
  try {
    for await (const chunk of archive as unknown as AsyncIterable<Buffer>) {
      for (let at = 0; at < chunk.length; at += maxChunkBytes) {
        await call.send({ tar: chunk.subarray(at, at + maxChunkBytes) });
      }
    }
  } finally {
    archive.destroy(new DroverError('cancelled', 'the copy was cancelled'));
    await packing;
  }
}

async function packTree(archive: Pack, path: string, name: string, stats: Stats, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const header = { name, mode: stats.mode & 0o7777, uid: stats.uid, gid: stats.gid, mtime: stats.mtime };
  if (stats.isSymbolicLink()) {
    archive.entry({ ...header, type: 'symlink', linkname: await readlink(path) });
  } else if (stats.isFile()) {
    await packFile(archive, path, header, signal);
  } else if (stats.isDirectory()) {
    archive.entry({ ...header, name: `${name}/`, type: 'directory' });
    for (const child of (await readdir(path)).sort()) {
      const below = join(path, child);
      // What went away since the directory was read is not there to copy.
      const found = await lstat(below).catch(() => undefined);
      // /proc and /sys would never end; what is mounted at /.drover is not the sandbox's.
      if (found !== undefined && !isForeign(below)) await packTree(archive, below, `${name}/${child}`, found, signal);
    }
  }
}

function isForeign(path: string): boolean {
  return path === '/proc' || path === '/sys' || path === '/dev' || path === '/.drover';
}

async function packFile(
  archive: Pack,
  path: string,
  header: { name: string; mode: number; uid: number; gid: number; mtime: Date },
  signal: AbortSignal,
): Promise<void> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    const entry = archive.entry({ ...header, type: 'file', size }) as unknown as NodeJS.WritableStream;
    let left = size;
    while (left > 0) {
      signal.throwIfAborted();
      const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(Math.min(left, maxChunkBytes)));
      // A file that shrinks while it is read is filled with zeros, one that grows is cut: the header's size is promised.
      const data = bytesRead === 0 ? Buffer.alloc(Math.min(left, maxChunkBytes)) : buffer.subarray(0, bytesRead);
      left -= data.length;
      if (!entry.write(data)) await once(entry, 'drain', { signal });
    }
    entry.end();
  } finally {
    await file.close();
  }
}

function notFound(path: string, cause: unknown): DroverError {
  const code = errnoOf(cause);
  if (code !== 'ENOENT' && code !== 'ENOTDIR') return DroverError.from(cause);
  return new DroverError('path-not-found', `the sandbox has no ${clip(path)}`, { hint: 'look with `drover exec`', cause });
}
