import { lstat, stat } from 'node:fs/promises';
import { bytesOf, fsPath, readTree, resolveGiven, showPath, stringOf, treeChunkBytes, unsupportedKind } from '@drover/archive';
import { DroverError, errnoOf } from '@drover/foundation';
import type { init } from '@drover/protocol';
import type { Call, Reply } from '../server/index.ts';

/**
 * A tar stream of a file or directory of the sandbox; names in it begin with the path's last part, `.` for a directory's contents. What
 * cannot be carried is named in between. @throws {DroverError} path-not-found, failed-precondition
 */
export async function copyOut(call: Call<init.CopyOutRequest, Reply<'copyOut'>>, workdir: string): Promise<void> {
  let request: init.CopyOutRequest | undefined;
  for await (const message of call.requests) request = message;
  if (request === undefined) throw new DroverError('protocol-violation', 'the request is missing');
  for await (const message of packPath(request, workdir, call.signal)) await call.send(message);
}

/** The messages of one copy. Also used by a host, for a sandbox that does not run. */
export async function* packPath(
  { path: given, followLinks }: Pick<init.CopyOutRequest, 'path' | 'followLinks'>,
  workdir: string,
  signal: AbortSignal,
  owner?: (uid: number, gid: number) => { readonly uid: number; readonly gid: number },
): AsyncGenerator<Reply<'copyOut'>, void, undefined> {
  const { path, name, endsInSlash } = resolveGiven(stringOf(given), workdir);
  try {
    const stats = await (followLinks || endsInSlash ? stat(fsPath(path), { bigint: true }) : lstat(fsPath(path), { bigint: true }));
    const unfit = unsupportedKind(stats);
    if (unfit !== undefined) {
      throw new DroverError('failed-precondition', `${showPath(path)} ${unfit}: it cannot be copied`, {
        hint: 'read it in the sandbox, with `drover exec`, and copy what it returns',
      });
    }
    if (endsInSlash && !stats.isDirectory()) throw notFound(path, 'it is not a directory');
  } catch (error) {
    const errno = errnoOf(error);
    if (errno !== 'ENOENT' && errno !== 'ENOTDIR') throw error;
    throw notFound(path, 'there is no such file', error);
  }
  const tree = readTree({
    path,
    name,
    followLinks,
    followPath: followLinks || endsInSlash,
    isOpaque: isForeign,
    ...(owner !== undefined && { owner }),
    signal,
  });
  for await (const part of tree) {
    if (Buffer.isBuffer(part))
      for (let at = 0; at < part.length; at += treeChunkBytes) yield { tar: part.subarray(at, at + treeChunkBytes) };
    else yield { leftOut: { path: bytesOf(part.path), reason: part.reason } };
  }
}

/** File systems of the kernel, without end or meaning elsewhere, and what is mounted at /.drover: in a copy of the root they are empty directories. */
function isForeign(path: string): boolean {
  return path === '/proc' || path === '/sys' || path === '/dev' || path === '/.drover';
}

function notFound(path: string, why: string, cause?: unknown): DroverError {
  return new DroverError('path-not-found', `the sandbox has no ${showPath(path)}: ${why}`, {
    hint: 'list its directory with `drover exec`',
    cause,
  });
}
