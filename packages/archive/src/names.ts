/** Paths in this package are byte strings: one latin1 character is one byte, since a file's name need not be UTF-8. */

/** Text as a byte string. */
export function byteString(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}

/** A byte string as bytes, as a message carries it. */
export function bytesOf(path: string): Buffer {
  return Buffer.from(path, 'latin1');
}

export function stringOf(path: Uint8Array): string {
  return Buffer.from(path.buffer, path.byteOffset, path.byteLength).toString('latin1');
}

/** A path for functions of node:fs: the string itself when it is ASCII, else its bytes. */
export function fsPath(path: string): string | Buffer {
  // oxlint-disable-next-line no-control-regex
  return /^[\0-\x7f]*$/.test(path) ? path : bytesOf(path);
}

/** For people: as text where it is UTF-8, other bytes and control characters as `\xNN`. */
export function showPath(path: string): string {
  const bytes = bytesOf(path);
  const text = bytes.toString('utf8');
  const isText = Buffer.from(text, 'utf8').equals(bytes);
  // In UTF-8 a C1 control, which some terminals obey, is 0xc2 and a byte below 0xa0.
  // oxlint-disable-next-line no-control-regex
  const unshown = isText ? /[\0-\x1f\x7f]|\xc2[\x80-\x9f]/g : /[^\x20-\x7e]/g;
  const hex = (found: string): string => bytesOf(found).reduce((shown, byte) => `${shown}\\x${byte.toString(16).padStart(2, '0')}`, '');
  const shown = path.replaceAll(unshown, hex);
  return isText ? bytesOf(shown).toString('utf8') : shown;
}
