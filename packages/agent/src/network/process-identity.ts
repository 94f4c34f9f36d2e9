import { DroverError, systemClock } from '@drover/foundation';

/** Ends a process that is not a child: SIGTERM, and SIGKILL after the grace. Resolves when it is gone. @throws {DroverError} timed-out */
export async function endProcess(pid: number, isAlive: () => Promise<boolean>, graceMs: number): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    try {
      process.kill(pid, signal);
    } catch {
      return;
    }
    const until = systemClock.now() + graceMs;
    while (systemClock.now() < until) {
      if (!(await isAlive())) return;
      await systemClock.sleep(20);
    }
  }
  throw new DroverError('timed-out', `process ${pid} does not end`);
}
