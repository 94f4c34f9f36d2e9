import { chmodSync, lstatSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { DroverError, clip, errnoOf, makeDirectoriesSync, reasonOf } from '@drover/foundation';

/** An absolute path, or one below the user's home; `~/` says the latter too. */
export function pathBelow(home: string, path: string): string {
  if (path === '' || path.includes('\0')) throw new DroverError('invalid-argument', `${JSON.stringify(clip(path))} cannot be a path`);
  return resolve(home, path.replace(/^~(?=\/|$)/, '.'));
}

/**
 * Makes `path` a file with this content and these permission bits, and its directories; nothing when it is one already. The file is
 * replaced whole, so that nobody reads half of it, and a link in its place is replaced rather than written through.
 */
export function placeFile(path: string, content: Uint8Array, mode: number): void {
  if (mode > 0o7777) throw new DroverError('invalid-argument', `${mode.toString(8)} are no permission bits (of ${clip(path)})`);
  // A fixed name: what a step that was killed has left goes with the next.
  const temporary = join(dirname(path), `.${basename(path)}.drover-new`);
  try {
    if (isSame(path, content, mode)) return;
    // A link to a directory, as /bin often is one, must stay (as with cp(1)): renaming would put the file in its place.
    if (statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) throw Object.assign(new Error('EISDIR'), { code: 'EISDIR' });
    makeDirectoriesSync(dirname(path), 0o755);
    rmSync(temporary, { force: true });
    try {
      writeFileSync(temporary, content, { flag: 'wx', mode: 0o600 });
      chmodSync(temporary, mode);
      renameSync(temporary, path);
    } finally {
      rmSync(temporary, { force: true });
    }
  } catch (error) {
    throw placeError(path, error);
  }
}

/** Makes a directory of the user's own, 0700. */
export function placePrivateDirectory(path: string): void {
  try {
    makeDirectoriesSync(path, 0o700);
    chmodSync(path, 0o700);
  } catch (error) {
    throw placeError(path, error);
  }
}

/** The file's text; empty where there is none. */
export function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return '';
    throw placeError(path, error);
  }
}

export function placeError(path: string, error: unknown): DroverError {
  const name = clip(path);
  const errno = errnoOf(error);
  switch (errno) {
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return new DroverError(
        'missing-privilege',
        `${name} cannot be written by the sandbox's user ${process.getuid?.() ?? ''}: ${reasonOf(error)}`,
        {
          hint: 'choose a path below its home directory, or another user',
          cause: error,
        },
      );
    case 'EISDIR':
    case 'ENOTDIR':
    case 'EEXIST':
    case 'ENOTEMPTY':
    case 'ELOOP':
      return new DroverError('failed-precondition', `${name} cannot be made: something else is in its place`, {
        hint: 'choose another path, or remove it from the image',
        cause: error,
      });
    default:
      return DroverError.from(error, 'runtime-failed');
  }
}

function isSame(path: string, content: Uint8Array, mode: number): boolean {
  try {
    const found = lstatSync(path);
    return found.isFile() && (found.mode & 0o7777) === mode && found.size === content.length && readFileSync(path).equals(content);
  } catch {
    // It is not there, or cannot be read: it is made anew.
    return false;
  }
}
