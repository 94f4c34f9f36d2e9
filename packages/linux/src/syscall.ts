import { DroverError } from '@drover/foundation';
import { addressOf, cString, errno, errnoName, libcFunctions } from './libc.ts';

/** A number or descriptor; text, passed as the address of a C string; bytes, passed as their address. */
type Argument = bigint | string | Buffer;

const libc = libcFunctions({
  syscall: { arguments: ['i64', 'i64', 'i64', 'i64', 'i64', 'i64'], return: 'i64' },
  umount2: { arguments: ['buffer', 'i32'], return: 'i32' },
});

/**
 * syscall(2), for calls that not every C library has a function for.
 * @param action what the caller does, for the message: `mounting on /mnt`
 * @throws {DroverError} runtime-failed
 */
export function syscall(action: string, number: bigint, ...args: readonly Argument[]): number {
  // Held until the call has returned.
  const held = args.map((argument) => (typeof argument === 'string' ? cString(argument) : argument));
  const [a = 0n, b = 0n, c = 0n, d = 0n, e = 0n] = held.map((value) => (typeof value === 'bigint' ? value : addressOf(value)));
  const result = libc().syscall(number, a, b, c, d, e);
  if (result < 0n) throw callFailed(action);
  held.length = 0;
  return Number(result);
}

/** umount2(2), MNT_DETACH: removes the topmost mount of `target` from the tree; the kernel frees it when it is no longer used. */
export function detachMount(action: string, target: string): void {
  if (libc().umount2(cString(target), MNT_DETACH) !== 0) throw callFailed(action);
}

/** Source: include/linux/fs.h. */
const MNT_DETACH = 2;

/** The error of the last call of this thread. */
export function callFailed(action: string): DroverError {
  return new DroverError('runtime-failed', `${action}: ${errnoName(errno())}`);
}
