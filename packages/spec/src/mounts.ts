import { isAbsolute, resolve } from 'node:path';
import { parseName, type Name } from '@drover/foundation';
import { invalid, quote } from './invalid.ts';
import { maxPathBytes } from './limits.ts';
import { isReserved, normalPath } from './paths.ts';

/** A volume, or a directory of the host, as a sandbox sees it. */
export type Mount = { readonly target: string; readonly readOnly: boolean } & (
  | { readonly volume: Name; readonly source: '' }
  /** An absolute path on the host. */
  | { readonly volume: ''; readonly source: string }
);

/** A mount as it is written on the wire. */
export interface MountInput {
  readonly source: string;
  readonly volume: string;
  readonly target: string;
  readonly readOnly: boolean;
}

/** @throws {DroverError} invalid-argument, invalid-name */
export function parseMount({ source, volume, target, readOnly }: MountInput): Mount {
  if (volume !== '' && source !== '') throw invalid('a mount has both a volume and a source', 'name one of them');
  checkPath('target', target);
  if (normalPath(target) === '/' || isReserved(target)) {
    throw invalid(`nothing can be mounted on ${quote(target)}`, 'choose a directory outside /proc, /sys, /dev and /.drover');
  }
  if (volume !== '') return { volume: parseName(volume), source: '', target, readOnly };
  checkPath('source', source);
  return { volume: '', source, target, readOnly };
}

function checkPath(what: string, path: string): void {
  const parts = path.split('/');
  if (path.startsWith('/') && path.length <= maxPathBytes && !path.includes('\0') && !parts.includes('..') && !parts.includes('.')) return;
  throw invalid(`${quote(path)} cannot be the ${what} of a mount`, 'write an absolute path without . and ..');
}

/**
 * `VOLUME:TARGET[:ro]` or `DIRECTORY:TARGET[:ro]`, as --volume takes it.
 * @param directory where a relative DIRECTORY starts
 * @throws {DroverError} invalid-argument, invalid-name
 */
export function parseMountFlag(text: string, directory: string): Mount {
  const [source = '', target = '', mode = 'rw', ...rest] = text.split(':');
  if (source === '' || !isAbsolute(target) || rest.length > 0 || !['ro', 'rw'].includes(mode)) {
    throw invalid(
      `${quote(text)} is not a volume`,
      'write SOURCE:TARGET or SOURCE:TARGET:ro; SOURCE is a volume or a directory of the host (./DIR), TARGET a path in the sandbox, from /',
    );
  }
  // As docker has it: a name without a slash is a volume's, and ./name a directory.
  const isVolume = source !== '.' && source !== '..' && !source.includes('/');
  return parseMount({
    volume: isVolume ? source : '',
    source: isVolume ? '' : resolve(directory, source),
    target,
    readOnly: mode === 'ro',
  });
}
