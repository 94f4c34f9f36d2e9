import { invalid, quote } from './invalid.ts';
import { maxLabels } from './limits.ts';

/** Labels of a sandbox or a host, by key. */
export type Labels = Readonly<Record<string, string>>;

const keyPattern = /^[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;
const maxValueLength = 256;

/** `key=value`, as --label takes it; without `=` the value is empty. @throws {DroverError} invalid-argument */
export function parseLabel(text: string): readonly [key: string, value: string] {
  const at = text.indexOf('=');
  return at < 0 ? checked(text, '') : checked(text.slice(0, at), text.slice(at + 1));
}

/** @throws {DroverError} invalid-argument */
export function parseLabels(labels: Labels): Labels {
  const entries = Object.entries(labels);
  if (entries.length > maxLabels) throw invalid(`there are ${entries.length} labels`, `use at most ${maxLabels}`);
  return Object.fromEntries(entries.map(([key, value]) => checked(key, value)));
}

function checked(key: string, value: string): readonly [string, string] {
  if (keyPattern.test(key) && value.length <= maxValueLength) return [key, value];
  throw invalid(
    `${quote(`${key}=${value}`)} is not a label`,
    `write key=value; a key has at most 63 letters, digits, dots, slashes and hyphens, a value at most ${maxValueLength} characters`,
  );
}
