import { invalid, quote } from '../invalid.ts';

export interface GitClone {
  readonly url: string;
  readonly path: string;
  /** A branch, a tag or a commit; empty: the remote's default. */
  readonly ref: string;
}

/** git-config(1), Syntax: a section, perhaps a subsection of almost any characters, and a name. */
const keyPattern = /^[A-Za-z0-9-]+(?:\.[^\0\n]{1,255})?\.[A-Za-z][A-Za-z0-9-]{0,127}$/;
const urlSchemes: ReadonlySet<string> = new Set(['https:', 'ssh:', 'git:']);
const maxUrlLength = 2048;

/** @throws {DroverError} invalid-argument */
export function checkGitSetting(key: string, value: string): void {
  if (!keyPattern.test(key)) throw invalid(`${quote(key)} cannot be a setting of git`, 'write section.name, such as user.email');
  if (value.includes('\0')) throw invalid(`the value of ${quote(key)} holds a NUL`, 'use text');
}

/** @throws {DroverError} invalid-argument */
export function parseCloneUrl(url: string): string {
  const hint = 'write https://…, ssh://… or git://… with a host';
  // Messages end in logs: the part that may hold a password is left out.
  const shown = quote(url.replace(/\/\/[^/@]*@/, '//'));
  const parsed = url.length <= maxUrlLength && !/[\p{Cc} ]/u.test(url) ? URL.parse(url) : null;
  if (parsed === null) throw invalid(`${shown} is not an address that git can clone`, hint);
  if (!urlSchemes.has(parsed.protocol)) throw invalid(`${shown} cannot be cloned: its scheme is not allowed`, hint);
  // A host that begins with a hyphen would be an option to ssh (CVE-2017-1000117).
  if (parsed.hostname === '' || parsed.hostname.startsWith('-')) throw invalid(`${shown} names no host`, hint);
  if (parsed.password !== '') {
    throw invalid(`${shown} holds a password, which everybody could read`, 'pass it as a secret: in a file for git, or as a key for ssh');
  }
  return url;
}

/** @throws {DroverError} invalid-argument */
export function parseGitRef(ref: string): string {
  if (!ref.startsWith('-') && ref.length <= 255 && !/[\p{Cc} ]/u.test(ref)) return ref;
  throw invalid(`${quote(ref)} is not a branch, a tag or a commit`, 'use a name that git knows, such as main or v1.2');
}
