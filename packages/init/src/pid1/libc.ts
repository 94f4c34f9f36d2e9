import { createRequire } from 'node:module';

/** The one call that Node has no API for: waitpid(2), through node:ffi (experimental in Node 26, hence alone in this module). */
export interface Libc {
  /** Reaps `pid` if it is a zombie child of this process; says whether it was. Never waits. */
  reap(pid: number): boolean;
}

interface Ffi {
  dlopen(
    path: string,
    definitions: Record<string, { readonly return: string; readonly arguments: readonly string[] }>,
  ): { readonly functions: { readonly waitpid: (pid: number, status: bigint, options: number) => number } };
}

const WNOHANG = 1;
let libc: Libc | undefined | null = null;

/** Loaded for the first orphan; undefined when this Node has no ffi: orphans then stay zombies until the sandbox ends. */
export function loadLibc(): Libc | undefined {
  if (libc !== null) return libc;
  try {
    // Not an import: where it is missing that must not keep PID 1 from starting.
    const ffi = createRequire('/')('node:ffi') as Ffi;
    const { waitpid } = ffi.dlopen('libc.so.6', {
      waitpid: { return: 'int32', arguments: ['int32', 'uint64', 'int32'] },
    }).functions;
    libc = { reap: (pid) => waitpid(pid, 0n, WNOHANG) === pid };
  } catch {
    libc = undefined;
  }
  return libc;
}
