import { createRequire } from 'node:module';
import { DroverError } from '@drover/foundation';

/** The calls that Node has no API for, through node:ffi (experimental in Node 26, hence alone in this module). */
export interface Libc {
  /** waitpid(2): reaps `pid` if it is a zombie child of this process, and returns its wait status. Never waits. */
  reap(pid: number): number | undefined;
  /** malloc_trim(3): returns unused memory of malloc to the kernel. */
  trim(): void;
  /** pipe2(2), closed on exec. @throws {DroverError} no-room */
  pipe(): Pipe;
  /** fcntl(2), FD_CLOEXEC: programs that this process starts do not inherit `fd`. */
  closeOnExec(fd: number): void;
  /** setfsuid(2) of the calling thread: files that `work` makes belong to `uid`. */
  asFileOwner<T>(uid: number, work: () => T): T;
}

/** The descriptors of a pipe's two ends. */
export interface Pipe {
  readonly reader: number;
  readonly writer: number;
}

const WNOHANG = 1;
const O_CLOEXEC = 0o2000000;
/** fcntl(2) of Linux on every architecture. */
const F_SETFD = 2;
const FD_CLOEXEC = 1;
/** Of the structures that the calls below fill in; more than they need. */
const structureBytes = 64;
let libc: Libc | undefined | null = null;

/** Loaded when first needed; undefined when this Node has no ffi: see the callers for what is missing then. */
export function loadLibc(): Libc | undefined {
  if (libc === null) {
    try {
      libc = openLibc();
    } catch {
      libc = undefined;
    }
  }
  return libc;
}

function openLibc(): Libc {
  // Not an import: where it is missing that must not keep PID 1 from starting.
  const ffi = createRequire('/')('node:ffi') as typeof import('node:ffi');
  const { waitpid, malloc_trim, pipe2, fcntl, setfsuid } = ffi.dlopen('libc.so.6', {
    waitpid: { return: 'int32', arguments: ['int32', 'buffer', 'int32'] },
    malloc_trim: { return: 'int32', arguments: ['uint64'] },
    pipe2: { return: 'int32', arguments: ['buffer', 'int32'] },
    fcntl: { return: 'int32', arguments: ['int32', 'int32', 'int32'] },
    setfsuid: { return: 'int32', arguments: ['uint32'] },
  }).functions;
  const filled = Buffer.alloc(structureBytes);
  return {
    reap: (pid) => (waitpid(pid, filled, WNOHANG) === pid ? filled.readInt32LE() : undefined),
    trim: () => void malloc_trim(0n),
    pipe: () => {
      if (pipe2(filled, O_CLOEXEC) !== 0) throw new DroverError('no-room', 'init has no file descriptors left', { hint: 'end some execs' });
      return { reader: filled.readInt32LE(0), writer: filled.readInt32LE(4) };
    },
    closeOnExec: (fd) => void fcntl(fd, F_SETFD, FD_CLOEXEC),
    asFileOwner: (uid, work) => {
      const before = setfsuid(uid);
      try {
        return work();
      } finally {
        setfsuid(before);
      }
    },
  };
}
