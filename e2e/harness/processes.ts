import { readdir, readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

/** argv of a process; empty when it is gone. */
export async function commandLine(pid: number): Promise<readonly string[]> {
  const text = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
  return text.split('\0').filter((word) => word !== '');
}

/** Processes that name something below the directory in their arguments or environment: those of one test instance. */
export async function processesUnder(directory: string): Promise<readonly number[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
  const found: number[] = [];
  for (const pid of pids) {
    if (pid === process.pid) continue;
    const argv = await commandLine(pid);
    if (argv.some((word) => word.startsWith(directory) || word.includes(`=${directory}`))) found.push(pid);
  }
  return found;
}

/** SIGTERM, then SIGKILL for those that stay; by pid. */
export async function endProcesses(pids: readonly number[]): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const alive = pids.filter(isAlive);
    for (const pid of alive) {
      try {
        process.kill(pid, signal);
      } catch {
        // It ended by itself in between.
      }
    }
    for (let i = 0; i < 60 && pids.some(isAlive); i++) await delay(50);
  }
}

export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
