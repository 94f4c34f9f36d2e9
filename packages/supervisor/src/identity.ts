import { DroverError, systemClock } from '@drover/foundation';
import { isSameProcess, processStart } from '@drover/linux';
import { limits } from './limits.ts';

/** A process across the reuse of its pid: no other process has both values until the next boot. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Clock ticks from boot to its start. */
  readonly startTime: string;
}

/** The identity of this process. */
export function ownIdentity(): ProcessIdentity {
  return { pid: process.pid, startTime: processStart(process.pid) ?? '' };
}

export function isRunning({ pid, startTime }: ProcessIdentity): boolean {
  return isSameProcess(pid, startTime);
}

/** Ends a process that is no child of this one: SIGTERM, then SIGKILL after the grace. Resolves when it has ended. @throws {DroverError} timed-out */
export async function endProcess(identity: ProcessIdentity, graceMs: number): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    if (!isRunning(identity)) return;
    process.kill(identity.pid, signal);
    const until = systemClock.now() + graceMs;
    while (systemClock.now() < until) {
      if (!isRunning(identity)) return;
      await systemClock.sleep(limits.exitPollMs);
    }
  }
  throw new DroverError('timed-out', `process ${identity.pid} does not end`);
}
