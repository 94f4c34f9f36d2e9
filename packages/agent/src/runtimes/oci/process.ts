import { readdirSync, readFileSync } from 'node:fs';
import { errnoOf } from '@drover/foundation';

/** Start time of a process in ticks since boot, undefined when it is gone or a zombie (proc(5), stat: state is field 3, starttime 22). */
export function processStart(pid: number): string | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    // ENOENT or ESRCH: gone.
    return undefined;
  }
  // The name, in parentheses, may hold anything, spaces and parentheses too.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
}

/** Is the process that started then still there? */
export function isSameProcess(pid: number | undefined, start: string | undefined): pid is number {
  return pid !== undefined && start !== undefined && processStart(pid) === start;
}

/** Does the process belong to the cgroup of this name? For a pid whose start time nobody noted. */
export function isInCgroup(pid: number, name: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cgroup`, 'utf8')
      .split('\n')
      .some((line) => line.split('/').includes(name));
  } catch {
    // Gone.
    return false;
  }
}

/** This process's hard limit of open files (proc(5), limits). */
export function ownOpenFiles(): number {
  const hard = /^Max open files\s+\S+\s+(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1];
  return hard === undefined || hard === 'unlimited' ? Number.MAX_SAFE_INTEGER : Number(hard);
}

/** Processes that were started with exactly this argument. Reads all of /proc: for what a crash left, not for every day. */
export function processesWithArgument(argument: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes(argument);
      } catch {
        // Gone.
        return false;
      }
    });
}

export function signalProcess(pid: number, signal: 'SIGTERM' | 'SIGKILL'): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    // Ended in between.
    if (errnoOf(error) !== 'ESRCH') throw error;
  }
}

export function readPid(path: string): number | undefined {
  try {
    const pid = Number(readFileSync(path, 'utf8'));
    return Number.isInteger(pid) && pid > 1 ? pid : undefined;
  } catch {
    // None yet.
    return undefined;
  }
}
