/** A path that is a byte string in latin1 (see tar.ts), as node:fs takes it: the string itself when it is ASCII, else its bytes. */
export function fsPath(path: string): string | Buffer {
  // oxlint-disable-next-line no-control-regex
  return /^[\0-\x7f]*$/.test(path) ? path : Buffer.from(path, 'latin1');
}
