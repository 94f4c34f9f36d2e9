import type { ChildProcess } from 'node:child_process';
import { parseSignal, signalExitCode, signalName } from '@drover/spec';
import { reapIntervalMs } from '../limits.ts';
import { loadLibc } from './libc.ts';
import type { RawExit } from './spawned.ts';

/** Pids whose waiter is not the reaper of orphans: this module, or the terminal addon. */
export const ownChildren = new Set<number>();
const awaited = new Map<number, (exit: RawExit) => void>();
let timer: NodeJS.Timeout | undefined;

/**
 * How a child ends. Node reports an end by a real-time signal as exit status 0, so libuv gives up its wait for the child, and this module
 * waits for it. Call it in the same turn as the spawn: libuv has not reaped the child yet.
 */
export function exitOf(child: ChildProcess, pid: number): Promise<RawExit> {
  // Node's handle of the process, which has no public name; closing it ends libuv's wait and nothing else.
  const { _handle: handle } = child as unknown as { readonly _handle?: { close?: () => void } | null };
  if (loadLibc() === undefined || typeof handle?.close !== 'function') {
    return new Promise((resolve) =>
      child.once('exit', (code, signal) => resolve(signal === null ? exited(code ?? 0) : endedBy(parseSignal(signal)))),
    );
  }
  handle.close();
  ownChildren.add(pid);
  if (timer === undefined) {
    process.on('SIGCHLD', scheduleCollect);
    // Also keeps this process alive while it has nothing else to wait for.
    timer = setInterval(collectExits, reapIntervalMs);
  }
  // It may have ended before anything listened for its signal.
  scheduleCollect();
  return new Promise((resolve) => awaited.set(pid, resolve));
}

/** Signals coalesce: each look is at every child. */
export function collectExits(): void {
  for (const [pid, resolve] of awaited) {
    const status = loadLibc()?.reap(pid);
    if (status === undefined) continue;
    awaited.delete(pid);
    ownChildren.delete(pid);
    // wait(2): WTERMSIG and WEXITSTATUS.
    const signal = status & 0x7f;
    resolve(signal === 0 ? exited((status >> 8) & 0xff) : endedBy(signal));
  }
  if (awaited.size > 0 || timer === undefined) return;
  clearInterval(timer);
  timer = undefined;
  process.off('SIGCHLD', scheduleCollect);
}

export function exited(code: number): RawExit {
  return { code, signal: '' };
}

export function endedBy(signal: number): RawExit {
  return { code: signalExitCode(signal), signal: signalName(signal) };
}

function scheduleCollect(): void {
  setImmediate(collectExits);
}
