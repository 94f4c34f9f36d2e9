import { DroverError, errnoOf } from '@drover/foundation';
import { libcFunctions } from './libc.ts';

/** The descriptors of the two ends of a pipe. */
export interface Pipe {
  readonly reader: number;
  readonly writer: number;
}

const libc = libcFunctions({
  pipe2: { arguments: ['buffer', 'i32'], return: 'i32' },
  fcntl: { arguments: ['i32', 'i32', 'i32'], return: 'i32' },
  setfsuid: { arguments: ['u32'], return: 'i32' },
});

/** Of glibc alone. */
const glibc = libcFunctions({ malloc_trim: { arguments: ['u64'], return: 'i32' } });

/** Source: include/uapi/asm-generic/fcntl.h. */
const O_CLOEXEC = 0o2000000;
const F_SETFD = 2;
const FD_CLOEXEC = 1;

const filled = Buffer.alloc(8);

/** pipe2(2), closed on exec. @throws {DroverError} no-room without free descriptors */
export function makePipe(): Pipe {
  if (libc().pipe2(filled, O_CLOEXEC) !== 0) throw new DroverError('no-room', 'this process has no free file descriptors');
  return { reader: filled.readInt32LE(0), writer: filled.readInt32LE(4) };
}

/** fcntl(2), FD_CLOEXEC: programs that this process starts do not inherit `fd`. */
export function closeOnExec(fd: number): void {
  libc().fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/** setfsuid(2) of the calling thread: files that `work` creates belong to `uid`. */
export function withFileOwner<T>(uid: number, work: () => T): T {
  const before = libc().setfsuid(uid);
  try {
    return work();
  } finally {
    libc().setfsuid(before);
  }
}

/** malloc_trim(3): returns unused memory of malloc to the kernel. */
export function trimMemory(): void {
  glibc().malloc_trim(0n);
}

/** Sends a signal; does nothing when the process has ended. */
export function signalProcess(pid: number, signal: NodeJS.Signals | number): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (errnoOf(error) !== 'ESRCH') throw error;
  }
}
