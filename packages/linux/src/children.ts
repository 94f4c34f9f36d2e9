import { childCheckMs } from './limits.ts';
import { libcFunctions } from './libc.ts';

/** How a process ended. */
export interface ChildExit {
  /** Its exit code; 0 when a signal ended it. */
  readonly code: number;
  /** The number of the signal that ended it, 0 when it exited. */
  readonly signal: number;
}

const libc = libcFunctions({ waitpid: { arguments: ['i32', 'buffer', 'i32'], return: 'i32' } });

/** Source: include/uapi/linux/wait.h. */
const WNOHANG = 1;
const status = Buffer.alloc(8);
const awaited = new Map<number, (exit: ChildExit) => void>();
let timer: NodeJS.Timeout | undefined;

/**
 * Resolves when a child of this process ends, and reaps it; until then its pid belongs to no other process. Only the main thread gets SIGCHLD.
 * The child must not be waited for by another part of this process: libuv waits for its own children by their pids.
 */
export function childExit(pid: number): Promise<ChildExit> {
  const { promise, resolve } = Promise.withResolvers<ChildExit>();
  awaited.set(pid, resolve);
  if (timer === undefined) {
    process.on('SIGCHLD', scheduleCollect);
    // Also keeps this process alive while it only waits for a child.
    timer = setInterval(collectExits, childCheckMs);
  }
  // The child may have ended before the listener was added.
  scheduleCollect();
  return promise;
}

/** Whether `childExit` waits for this child. */
export function isAwaited(pid: number): boolean {
  return awaited.has(pid);
}

/** Reaps the children that have ended. Checks all, since pending signals of one number are merged. */
export function collectExits(): void {
  for (const [pid, resolve] of awaited) {
    const exit = reapChild(pid);
    if (exit === undefined) continue;
    awaited.delete(pid);
    resolve(exit);
  }
  if (awaited.size > 0 || timer === undefined) return;
  clearInterval(timer);
  timer = undefined;
  process.off('SIGCHLD', scheduleCollect);
}

function scheduleCollect(): void {
  setImmediate(collectExits);
}

/** waitpid(2) without waiting: reaps one child. Undefined: it has not ended, or is no child of this process. */
export function reapChild(pid: number): ChildExit | undefined {
  if (libc().waitpid(pid, status, WNOHANG) !== pid) return undefined;
  // wait(2): WTERMSIG and WEXITSTATUS.
  const value = status.readInt32LE();
  const signal = value & 0x7f;
  return { code: signal === 0 ? (value >> 8) & 0xff : 0, signal };
}
