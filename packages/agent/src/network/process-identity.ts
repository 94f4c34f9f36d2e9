import { readFile } from 'node:fs/promises';
import { DroverError, systemClock } from '@drover/foundation';

/**
 * When a process started, in clock ticks since boot: with its pid, its identity (proc_pid_stat(5), field 22).
 * A zombie has ended. @throws when there is no such process
 */
export async function processStartTime(pid: number): Promise<string> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  // The second field is the program's name in parentheses and may hold anything, spaces and parentheses too.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (fields[0] === 'Z') throw new DroverError('internal', `process ${pid} has ended`);
  return fields[19] ?? '';
}

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
