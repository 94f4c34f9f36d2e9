import { collectExits, isAwaited, isZombie, ownChildren, reapChild } from '@drover/linux';
import { limits } from './limits.ts';

/** Calls a handler for each signal until it is disposed of. A handler only records the request (G-8). */
export function onSignals(handlers: Readonly<Partial<Record<NodeJS.Signals, () => void>>>): Disposable {
  const entries = Object.entries(handlers) as [NodeJS.Signals, () => void][];
  for (const [signal, handler] of entries) process.on(signal, handler);
  return {
    [Symbol.dispose]: () => {
      for (const [signal, handler] of entries) process.off(signal, handler);
    },
  };
}

/**
 * Reaps orphans, which become children of PID 1 when their parent exits (G-5, I-37). It acts on the zombies that /proc shows; SIGCHLD and a
 * slow timer only start the search. Every zombie is reaped by its pid.
 * @param hasWaiter reports whether another part of this process waits for a child; those of `childExit` are known
 */
export function reapOrphans(hasWaiter: (pid: number) => boolean): Disposable {
  let scheduled = false;
  const search = (): void => {
    scheduled = false;
    collectExits();
    for (const pid of ownChildren()) if (!isAwaited(pid) && !hasWaiter(pid) && isZombie(pid)) reapChild(pid);
  };
  // The kernel merges pending signals of one number: one search for any number of them.
  const schedule = (): void => {
    if (!scheduled) setImmediate(search);
    scheduled = true;
  };
  const signals = onSignals({ SIGCHLD: schedule });
  const timer = setInterval(schedule, limits.reapIntervalMs).unref();
  return {
    [Symbol.dispose]: () => {
      signals[Symbol.dispose]();
      clearInterval(timer);
    },
  };
}
