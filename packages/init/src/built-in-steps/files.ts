import { chmodSync, lstatSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { fromBinary } from '@bufbuild/protobuf';
import { DroverError, clip, errnoOf, makeDirectoriesSync, reasonOf } from '@drover/foundation';
import { init } from '@drover/protocol';

/** The user that a built-in step runs as, and the environment of what it starts. */
export interface Surroundings {
  readonly home: string;
  readonly env: NodeJS.ProcessEnv;
}

const defaultMode = 0o644;

/** Step `config`: files with their content and mode. */
export function placeConfig(input: Uint8Array, { home }: Surroundings): number {
  for (const file of fromBinary(init.ConfigStepSchema, input).files) {
    placeFile(pathBelow(home, file.path), file.content, file.mode === 0 ? defaultMode : file.mode);
  }
  return 0;
}

/** Resolves a path against the user's home; `~/` means the home as well. */
export function pathBelow(home: string, path: string): string {
  if (path === '' || path.includes('\0')) throw new DroverError('invalid-argument', `${JSON.stringify(clip(path))} cannot be a path`);
  return resolve(home, path.replace(/^~(?=\/|$)/, '.'));
}

/**
 * Makes `path` a file with this content and these permission bits, with its directories. A file that is so already stays untouched. The file
 * is replaced as a whole, so that no reader sees a half, and a link in its place is replaced, not written through.
 */
export function placeFile(path: string, content: Uint8Array, mode: number): void {
  if (mode > 0o7777) throw new DroverError('invalid-argument', `${mode.toString(8)} are no permission bits (of ${clip(path)})`);
  // A fixed name: the next run removes the file that a killed step has left.
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

/** Makes a directory that only the user can enter. */
export function placePrivateDirectory(path: string): void {
  try {
    makeDirectoriesSync(path, 0o700);
    chmodSync(path, 0o700);
  } catch (error) {
    throw placeError(path, error);
  }
}

/** The file's text; empty when the file does not exist. */
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
    // It does not exist, or cannot be read: it is replaced.
    return false;
  }
}
