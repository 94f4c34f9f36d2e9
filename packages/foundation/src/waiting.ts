import type { Clock } from './clock.ts';

/** The reason of a controller that only ends a timer or a wait. One for all: without it, each abort makes an error with a stack trace. */
export const inTime = new Error('the work ended in time');

/** Calls `act` after `ms`. @returns a function that prevents the call */
export function after(ms: number, clock: Pick<Clock, 'sleep'>, act: () => void): () => void {
  const cancelled = new AbortController();
  // A cancelled sleep rejects.
  clock.sleep(ms, cancelled.signal).then(act, () => undefined);
  return () => cancelled.abort(inTime);
}

/**
 * The outcome of `work`, or a rejection with the signal's reason if it aborts first. The work itself goes on: shared work is never bound to
 * the signal of one caller.
 */
export async function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = (): void => reject(signal.reason as Error);
  if (signal.aborted) abort();
  else signal.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([aborted, work]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

/**
 * The outcome of `work`, or a rejection with the error of `late` when it takes longer than `ms`. The work itself goes on: whoever started it
 * ends it by its signal.
 */
export async function withDeadline<T>(work: Promise<T>, ms: number, clock: Pick<Clock, 'sleep'>, late: (ms: number) => Error): Promise<T> {
  const settled = new AbortController();
  const timeout = clock.sleep(ms, settled.signal).then(() => {
    throw late(ms);
  });
  try {
    return await Promise.race([work, timeout]);
  } finally {
    settled.abort(inTime);
  }
}
