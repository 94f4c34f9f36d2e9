import { readdir, readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

/** Returns argv of a process; empty when the process does not exist. */
export async function commandLine(pid: number): Promise<readonly string[]> {
  const text = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
  return text.split('\0').filter((word) => word !== '');
}

/** Returns the processes of one test instance: those whose arguments name a path below its directory. */
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

/** Sends SIGTERM, then SIGKILL to the remaining processes. */
export async function endProcesses(pids: readonly number[]): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const alive = pids.filter(isAlive);
    for (const pid of alive) {
      try {
        process.kill(pid, signal);
      } catch {
        // The process has exited in the meantime.
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
