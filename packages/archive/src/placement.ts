import { realpath, stat } from 'node:fs/promises';
import { posix } from 'node:path';
import { DroverError, errnoOf, makeDirectories } from '@drover/foundation';
import { byteString, fsPath, showPath } from './names.ts';
import type { WriteTreeOptions } from './write-tree.ts';

/** A path that a person copies from or to. */
export interface GivenPath {
  /** Absolute, without `.`, `..` and slashes at its end. A byte string. */
  readonly path: string;
  /** Its last part; `.` for the contents of a directory (`DIR/.`, `.`, `/`). */
  readonly name: string;
  /** Only a directory, or a link to one, can be meant. */
  readonly endsInSlash: boolean;
}

/** @param workdir the directory of a relative path; text */
export function resolveGiven(given: string, workdir: string): GivenPath {
  const path = posix.resolve(byteString(workdir), given);
  const isContents = path === '/' || /(?:^|\/)\.\.?\/*$/.test(given);
  return { path, name: isContents ? '.' : posix.basename(path), endsInSlash: isContents || given.endsWith('/') };
}

/**
 * The place of a copy, as with cp(1): in the target if it is a directory or a link to one, else under the target's own name. A link to a file
 * stays and its file is replaced; a link to nothing is replaced.
 * @param contents whether entries go below the target, a directory that is made if it does not exist
 * @param parents whether directories above the target are made
 * @throws {DroverError} failed-precondition, path-not-found
 */
export async function placeOf(
  { path, endsInSlash }: GivenPath,
  { contents, parents }: { readonly contents: boolean; readonly parents: 'make' | 'must-exist' },
): Promise<Pick<WriteTreeOptions, 'root' | 'rename' | 'rootIsNew'>> {
  const found = await stat(fsPath(path)).catch(absent);
  if (found?.isDirectory() === true) return { root: await realPath(path), rootIsNew: false };
  if (contents || endsInSlash) {
    if (found !== undefined) throw notDirectory(path);
    if (parents === 'must-exist' && (endsInSlash || !(await isDirectory(posix.dirname(path)))))
      throw missing(endsInSlash ? path : posix.dirname(path));
    await makeDirectory(path);
    return { root: await realPath(path), rootIsNew: true };
  }
  const real = found === undefined ? path : await realPath(path);
  const parent = posix.dirname(real);
  if (parents === 'make') await makeDirectory(parent);
  else if (!(await isDirectory(parent))) throw missing(parent);
  return { root: await realPath(parent), rename: posix.basename(real), rootIsNew: false };
}

async function makeDirectory(path: string): Promise<void> {
  try {
    await makeDirectories(fsPath(path));
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === 'EEXIST' || errno === 'ENOTDIR') throw notDirectory(path, error);
    throw error;
  }
}

async function isDirectory(path: string): Promise<boolean> {
  return (await stat(fsPath(path)).catch(absent))?.isDirectory() === true;
}

async function realPath(path: string): Promise<string> {
  return await realpath(fsPath(path), 'latin1');
}

function absent(error: unknown): undefined {
  const errno = errnoOf(error);
  if (errno !== 'ENOENT' && errno !== 'ENOTDIR') throw error;
}

function notDirectory(path: string, cause?: unknown): DroverError {
  return new DroverError('failed-precondition', `${showPath(path)} is not a directory`, { hint: 'copy to another path', cause });
}

function missing(path: string): DroverError {
  return new DroverError('path-not-found', `there is no directory ${showPath(path)}`, { hint: 'make it first' });
}
