import type { Branded } from '@drover/foundation';
import { invalid, quote } from './invalid.ts';
import { maxArgumentBytes, maxArguments, maxEnvVars, maxPathBytes } from './limits.ts';

export interface EnvironmentVariable {
  readonly name: string;
  readonly value: string;
}

/** An absolute path in a sandbox; empty: the image's working directory. */
export type Workdir = Branded<'workdir'> | '';
/** `USER` or `USER:GROUP`, names or numbers; empty: the image's user. */
export type User = Branded<'user'> | '';

/** @param what names the arguments in a refusal. @throws {DroverError} invalid-argument */
export function parseArguments(what: string, argv: readonly string[]): readonly string[] {
  if (argv.length > maxArguments) throw invalid(`the ${what} has ${argv.length} arguments`, `use at most ${maxArguments}`);
  if (argv.some((argument) => argument.includes('\0'))) {
    throw invalid(`the ${what} has an argument with a NUL in it`, 'no program can be given one');
  }
  const bytes = argv.reduce((sum, argument) => sum + Buffer.byteLength(argument) + 1, 0);
  if (bytes > maxArgumentBytes) throw invalid(`the ${what} has ${bytes} bytes of arguments`, `use at most ${maxArgumentBytes}`);
  return argv;
}

/** A name that a shell can use: `1A`, or `export A` of a line in a file, is a mistake. @throws {DroverError} invalid-argument */
export function parseVariableName(name: string): string {
  if (/^(?!\d)[^=\0\s]+$/.test(name)) return name;
  throw invalid(`${quote(name)} cannot be the name of an environment variable`, 'write NAME=value, with letters, digits and _ in NAME');
}

/** No message holds a value, which may be a secret. @throws {DroverError} invalid-argument */
export function parseEnvironment(env: readonly EnvironmentVariable[]): readonly EnvironmentVariable[] {
  if (env.length > maxEnvVars) throw invalid(`there are ${env.length} environment variables`, `use at most ${maxEnvVars}`);
  let bytes = 0;
  for (const { name, value } of env) {
    parseVariableName(name);
    if (value.includes('\0')) throw invalid(`the value of ${quote(name)} holds a NUL`, 'no program can be given one');
    bytes += Buffer.byteLength(name) + Buffer.byteLength(value) + 2;
  }
  if (bytes > maxArgumentBytes) throw invalid(`the environment has ${bytes} bytes`, `use at most ${maxArgumentBytes}`);
  return env;
}

/** @throws {DroverError} invalid-argument */
export function parseWorkdir(text: string): Workdir {
  if (text === '' || (text.startsWith('/') && !text.includes('\0') && text.length <= maxPathBytes)) return text as Workdir;
  throw invalid(`${quote(text)} cannot be a working directory`, 'write an absolute path');
}

/** @throws {DroverError} invalid-argument */
export function parseUser(text: string): User {
  if (text === '' || /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$/.test(text)) return text as User;
  throw invalid(`${quote(text)} cannot be a user`, 'write a name or number, and a group after a colon if you like: 1000:1000');
}
