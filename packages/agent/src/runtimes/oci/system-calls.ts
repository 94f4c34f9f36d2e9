import { DroverError } from '@drover/foundation';
import { openFfi } from '@drover/archive';

/** System calls that Node has no API for, through node:ffi. Synchronous: for what is done in microseconds. */
export interface SystemCalls {
  /**
   * Calls the C library's syscall(2) and gives its result.
   * @param what goes before the error's name in the message
   * @throws {DroverError} runtime-failed
   */
  readonly call: (what: string, number: bigint, ...args: readonly Argument[]) => number;
  /** umount2(2). @throws {DroverError} runtime-failed */
  readonly unmount: (what: string, target: string, flags: number) => void;
}

/** A number or descriptor; a string, given as the address of a C string; bytes, given as their address. */
export type Argument = bigint | string | Buffer;

const errnoNames: Record<number, string> = {
  1: 'EPERM',
  2: 'ENOENT',
  12: 'ENOMEM',
  16: 'EBUSY',
  17: 'EEXIST',
  20: 'ENOTDIR',
  22: 'EINVAL',
  28: 'ENOSPC',
  38: 'ENOSYS',
};

/** Undefined in a Node without ffi, or with another C library than glibc. */
export function openSystemCalls(): SystemCalls | undefined {
  const ffi = openFfi();
  if (ffi === undefined) return undefined;
  try {
    const { functions } = ffi.dlopen('libc.so.6', {
      syscall: { arguments: ['i64', 'i64', 'i64', 'i64', 'i64', 'i64'], return: 'i64' },
      umount2: { arguments: ['pointer', 'i32'], return: 'i32' },
      __errno_location: { arguments: [], return: 'pointer' },
    });
    const syscall = functions.syscall as (...args: readonly bigint[]) => bigint;
    const umount2 = functions.umount2 as (target: bigint, flags: number) => number;
    const failure = (what: string): DroverError => {
      const errno = ffi.getInt32(functions.__errno_location());
      return new DroverError('runtime-failed', `${what}: ${errnoNames[errno] ?? `errno ${errno}`}`);
    };
    /** Calls with the addresses of what is given, which is held until the call is over. */
    const withAddresses = (args: readonly Argument[], body: (...values: readonly bigint[]) => bigint): bigint => {
      const held = args.map((argument) => (typeof argument === 'string' ? Buffer.from(`${argument}\0`) : argument));
      try {
        return body(...held.map((value) => (typeof value === 'bigint' ? value : ffi.getRawPointer(value))));
      } finally {
        held.length = 0;
      }
    };
    return {
      call: (what, number, ...args) => {
        const result = withAddresses(args, (...values) => syscall(number, ...values, ...Array<bigint>(5 - values.length).fill(0n)));
        if (result < 0n) throw failure(what);
        return Number(result);
      },
      unmount: (what, target, flags) => {
        if (withAddresses([target], (path = 0n) => BigInt(umount2(path, flags))) !== 0n) throw failure(what);
      },
    };
  } catch {
    // Another C library (musl), or an ffi whose interface changed.
    return undefined;
  }
}
