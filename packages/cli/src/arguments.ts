import { isUtf8 } from 'node:buffer';
import { byteString, showPath } from '@drover/archive';
import { DroverError } from '@drover/foundation';
import { ownBytes } from '@drover/linux';

/**
 * Node decodes a program's arguments and environment as UTF-8 and replaces every invalid byte by U+FFFD. Drover's API carries both as text.
 * `cp` reads the original bytes of its paths from /proc. All other text that is not UTF-8 is refused rather than changed.
 */

/** An argument as a byte string. */
export function argumentBytes(argument: string): string {
  return damaged(argument, 'cmdline')?.toString('latin1') ?? byteString(argument);
}

/** @throws {DroverError} invalid-argument for an argument that is not UTF-8 */
export function requireText(argv: readonly string[]): void {
  for (const argument of argv) {
    const raw = damaged(argument, 'cmdline');
    if (raw === undefined) continue;
    throw new DroverError(
      'invalid-argument',
      `the argument "${showPath(raw.toString('latin1'))}" is not UTF-8, so it cannot be passed on unchanged`,
      {
        hint: 'copy it in as a file, or write it to stdin; drover cp accepts such names',
      },
    );
  }
}

/** @throws {DroverError} invalid-argument for a value of the environment that is not UTF-8 */
export function requireTextVariable(name: string, value: string): void {
  const raw = damaged(`${name}=${value}`, 'environ');
  if (raw === undefined) return;
  throw new DroverError('invalid-argument', `the value of ${name} is not UTF-8, so it cannot be passed on unchanged`, {
    hint: 'copy it in as a file',
  });
}

/** The original bytes of a text in which Node has replaced some; undefined if it has replaced none, or without /proc. */
function damaged(text: string, source: 'cmdline' | 'environ'): Buffer | undefined {
  if (!text.includes('\ufffd')) return undefined;
  const all = ownBytes(source) ?? Buffer.alloc(0);
  for (let at = 0; at < all.length; ) {
    const end = all.indexOf(0, at);
    const bytes = all.subarray(at, end < 0 ? all.length : end);
    if (!isUtf8(bytes) && bytes.toString('utf8') === text) return bytes;
    at += bytes.length + 1;
  }
  return undefined;
}
