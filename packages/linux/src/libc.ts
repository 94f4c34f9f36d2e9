import type { DynamicLibraryResult, FunctionDefinitions } from 'node:ffi';
import { constants } from 'node:os';
import { DroverError } from '@drover/foundation';

type Ffi = typeof import('node:ffi');
type Functions<T extends FunctionDefinitions> = DynamicLibraryResult<T>['functions'];

let ffi: Ffi | undefined;
/** Where the C library keeps errno for this thread. */
let errnoAddress = 0n;

/**
 * Declares functions of the C library that this process is linked with, glibc or musl.
 * @returns a function that returns them; its first call loads node:ffi and throws missing-component when that, or a function, is absent
 */
export function libcFunctions<const T extends FunctionDefinitions>(definitions: T): () => Functions<T> {
  let functions: Functions<T> | undefined;
  return () => (functions ??= bind(definitions));
}

function bind<const T extends FunctionDefinitions>(definitions: T): Functions<T> {
  try {
    return loadFfi().dlopen(null, definitions).functions;
  } catch (error) {
    throw new DroverError('missing-component', 'this Node.js cannot call the C library', {
      hint: 'start Drover with the Node.js that it is installed with, without --no-experimental-ffi',
      cause: error,
    });
  }
}

function loadFfi(): Ffi {
  if (ffi !== undefined) return ffi;
  // Loading node:ffi warns that it is experimental, on the stderr of every command.
  const original = Object.getOwnPropertyDescriptor(process, 'emitWarning');
  if (original !== undefined) Object.defineProperty(process, 'emitWarning', { ...original, value: () => undefined });
  try {
    const loaded: Ffi = process.getBuiltinModule('node:ffi');
    errnoAddress = loaded.dlopen(null, { __errno_location: { arguments: [], return: 'pointer' } }).functions.__errno_location();
    return (ffi = loaded);
  } finally {
    if (original !== undefined) Object.defineProperty(process, 'emitWarning', original);
  }
}

/** The address of a buffer's bytes, valid for as long as the caller holds the buffer. */
export function addressOf(bytes: Buffer): bigint {
  return loadFfi().getRawPointer(bytes);
}

/** Text as the C library takes it. */
export function cString(text: string, encoding: 'utf8' | 'latin1' = 'utf8'): Buffer {
  return Buffer.from(`${text}\0`, encoding);
}

/** errno(3): why the last call of this thread failed. */
export function errno(): number {
  return loadFfi().getInt32(errnoAddress);
}

/** Of two names for one number (EAGAIN, EWOULDBLOCK) the first in alphabetical order. */
const errnoNames = new Map(
  Object.entries(constants.errno)
    .toSorted(([a], [b]) => (a < b ? 1 : -1))
    .map(([name, number]) => [number, name]),
);

/** The name of an errno: `ENOENT`. */
export function errnoName(number: number): string {
  return errnoNames.get(number) ?? `E${number}`;
}

/** A failed call in the form of Node's own errors of the file system, with `code`, `errno` and `syscall`. */
export function systemError(call: string, subject: string, number = errno()): Error {
  const code = errnoName(number);
  return Object.assign(new Error(`${code}: ${call} ${JSON.stringify(subject)}`), { code, errno: -number, syscall: call });
}
