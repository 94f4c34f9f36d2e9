import { parentCheckMs } from '../limits.ts';

/** Set by `up` for its processes. */
export const parentVariable = 'DROVER_UP_PID';

/**
 * A signal that aborts when the `up` that started this process is gone, however it went. Not started by `up`: never.
 * An orphan gets another parent, which is what is looked for.
 */
export function whileParentLives(env: NodeJS.ProcessEnv): AbortSignal {
  const controller = new AbortController();
  const parent = Number(env[parentVariable] ?? '');
  if (Number.isSafeInteger(parent) && parent > 1) {
    const timer = setInterval(() => {
      if (process.ppid === parent) return;
      clearInterval(timer);
      controller.abort(new Error('drover up is gone'));
    }, parentCheckMs);
    timer.unref();
  }
  return controller.signal;
}
