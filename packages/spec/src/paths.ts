import { invalid, quote } from './invalid.ts';
import { maxPathBytes } from './limits.ts';

/** Directories that the sandbox's kernel or its init own, by their first part. */
const reserved: ReadonlySet<string> = new Set(['proc', 'sys', 'dev', '.drover']);
const maxPartBytes = 255;

/** Whether an absolute path without `.` and `..` is, or is below, a directory that the kernel or init own. */
export function isReserved(path: string): boolean {
  return path.startsWith('/') && reserved.has(path.split('/').find((part) => part !== '') ?? '');
}

/** One spelling a path: no repeated slash, and none at the end. */
export function normalPath(path: string): string {
  return path.replaceAll(/\/+/g, '/').replace(/(?<=.)\/$/, '');
}

/**
 * A path that the setup writes to: absolute, or below the user's home directory, which `~/` names too.
 * @throws {DroverError} invalid-argument
 */
export function parseSetupPath(what: string, text: string): string {
  const path = normalPath(text.replace(/^~\//, ''));
  const parts = path.split('/').filter((part) => part !== '');
  if (parts.length === 0 || Buffer.byteLength(path) > maxPathBytes || /\p{Cc}/u.test(path) || path.startsWith('~')) {
    throw invalid(`${quote(text)} cannot be the path of a ${what}`, "write a path from /, or one below the user's home directory");
  }
  if (parts.includes('..') || parts.includes('.')) throw invalid(`the path ${quote(text)} of a ${what} holds . or ..`, 'write it without');
  if (parts.some((part) => Buffer.byteLength(part) > maxPartBytes)) {
    throw invalid(
      `the path ${quote(text)} of a ${what} has a part that is too long`,
      `use at most ${maxPartBytes} bytes between two slashes`,
    );
  }
  if (isReserved(path)) throw invalid(`nothing can be written to ${quote(text)}`, 'choose a path outside /proc, /sys, /dev and /.drover');
  return path;
}
