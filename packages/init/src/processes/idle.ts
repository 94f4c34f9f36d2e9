import { readdirSync, readFileSync } from 'node:fs';
import { idleCpuFloorMs, idleCpuShare, maxIdleCheckMs, minIdleCheckMs } from '../limits.ts';

/** The activity of a sandbox. All values but `attached` only rise. */
export interface Activity {
  /** Open calls that use the sandbox: exec, attach, cp, forward; not the session and `logs`. */
  readonly attached: number;
  /** Such calls so far: a call between two checks counts. */
  readonly calls: number;
  /** Bytes that the main process has written. */
  readonly outputBytes: number;
  /** CPU time of every process but init. Milliseconds. */
  readonly cpuMs: number;
}

/** The time between two checks. Milliseconds. */
export function idleCheckMs(idleStopMs: number): number {
  return Math.min(maxIdleCheckMs, Math.max(minIdleCheckMs, idleStopMs / 5));
}

/**
 * Decides when a sandbox has been idle for long enough: no client attached, no output, and almost no CPU time at any check since.
 * Times are milliseconds of a monotonic clock.
 */
export class IdleWatch {
  readonly #idleStopMs: number;
  #since: number;
  #last: Activity;
  #checkedAt: number;

  constructor(idleStopMs: number, now: number, activity: Activity) {
    this.#idleStopMs = idleStopMs;
    this.#since = now;
    this.#checkedAt = now;
    this.#last = activity;
  }

  check(now: number, activity: Activity): boolean {
    const [last, elapsedMs] = [this.#last, now - this.#checkedAt];
    this.#last = activity;
    this.#checkedAt = now;
    const busy =
      activity.attached > 0 ||
      activity.calls !== last.calls ||
      activity.outputBytes !== last.outputBytes ||
      activity.cpuMs - last.cpuMs > Math.max(idleCpuFloorMs, elapsedMs * idleCpuShare) ||
      // Init did not run either: the sandbox was paused, and could not be used.
      elapsedMs > 3 * idleCheckMs(this.#idleStopMs);
    if (busy) this.#since = now;
    return now - this.#since >= this.#idleStopMs;
  }
}

/** Linux reports process times in hundredths of a second, whatever its own tick (proc(5); USER_HZ). */
const msPerTick = 10;

/**
 * CPU time of every process in this PID namespace but init, ended ones included: their time is added to the process that waited for them, in the
 * end to init (proc_pid_stat(5), utime to cstime). Milliseconds.
 */
export function workloadCpuMs(proc = '/proc', initPid = process.pid): number {
  let ticks = 0;
  for (const name of readdirSync(proc)) {
    if (!/^\d+$/.test(name)) continue;
    let stat: string;
    try {
      stat = readFileSync(`${proc}/${name}/stat`, 'latin1');
    } catch {
      // It has ended meanwhile: the next check finds its time at its parent.
      continue;
    }
    // After the name in parentheses, which may hold anything: utime, stime, cutime and cstime are fields 14 to 17.
    const times = stat
      .slice(stat.lastIndexOf(')') + 2)
      .split(' ')
      .slice(11, 15)
      .map(Number);
    for (const [index, value] of times.entries()) if (index > 1 || Number(name) !== initPid) ticks += value;
  }
  return ticks * msPerTick;
}
