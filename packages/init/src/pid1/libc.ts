import { createRequire } from 'node:module';

/** The two calls that Node has no API for, through node:ffi (experimental in Node 26, hence alone in this module). */
export interface Libc {
  /** waitpid(2): reaps `pid` if it is a zombie child of this process; says whether it was. Never waits. */
  reap(pid: number): boolean;
  /** malloc_trim(3): gives the kernel what malloc holds and nothing uses. */
  trim(): void;
}

interface Functions {
  readonly waitpid: (pid: number, status: bigint, options: number) => number;
  readonly malloc_trim: (pad: bigint) => number;
}

interface Ffi {
  dlopen(
    path: string,
    definitions: Record<keyof Functions, { readonly return: string; readonly arguments: readonly string[] }>,
  ): { readonly functions: Functions };
}

const WNOHANG = 1;
let libc: Libc | undefined | null = null;

/** Loaded when first needed; undefined when this Node has no ffi: orphans then stay zombies until the sandbox ends. */
export function loadLibc(): Libc | undefined {
  if (libc !== null) return libc;
  try {
    // Not an import: where it is missing that must not keep PID 1 from starting.
    const ffi = createRequire('/')('node:ffi') as Ffi;
    const { waitpid, malloc_trim: trim } = ffi.dlopen('libc.so.6', {
      waitpid: { return: 'int32', arguments: ['int32', 'uint64', 'int32'] },
      malloc_trim: { return: 'int32', arguments: ['uint64'] },
    }).functions;
    libc = { reap: (pid) => waitpid(pid, 0n, WNOHANG) === pid, trim: () => void trim(0n) };
  } catch {
    libc = undefined;
  }
  return libc;
}
