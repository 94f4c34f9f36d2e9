import { readdirSync, readFileSync } from 'node:fs';
import { idleCpuFloorMs, idleCpuShare, maxIdleCheckMs, minIdleCheckMs } from '../limits.ts';

/** What tells whether a sandbox is idle. All but `attached` only ever rise. */
export interface Activity {
  /** Open calls of someone who uses the sandbox: exec, attach, cp, forward. The session and `logs` are not. */
  readonly attached: number;
  /** Such calls so far: one that came and went between two looks counts. */
  readonly calls: number;
  /** Bytes that the main process wrote. */
  readonly outputBytes: number;
  /** CPU time of every process but init. Milliseconds. */
  readonly cpuMs: number;
}

/** How often to look. Milliseconds. */
export function idleCheckMs(idleStopMs: number): number {
  return Math.min(maxIdleCheckMs, Math.max(minIdleCheckMs, idleStopMs / 5));
}

/**
 * Says when a sandbox has been idle for long enough: nobody attached, nothing written, and next to no CPU used at any look since.
 * Times are milliseconds of a clock that never goes back.
 */
export class IdleWatch {
  readonly #idleStopMs: number;
  #since: number;
  #last: Activity;
  #lookedAt: number;

  constructor(idleStopMs: number, now: number, activity: Activity) {
    this.#idleStopMs = idleStopMs;
    this.#since = now;
    this.#lookedAt = now;
    this.#last = activity;
  }

  check(now: number, activity: Activity): boolean {
    const [last, elapsedMs] = [this.#last, now - this.#lookedAt];
    this.#last = activity;
    this.#lookedAt = now;
    const busy =
      activity.attached > 0 ||
      activity.calls !== last.calls ||
      activity.outputBytes !== last.outputBytes ||
      activity.cpuMs - last.cpuMs > Math.max(idleCpuFloorMs, elapsedMs * idleCpuShare) ||
      // Init itself did not run: the sandbox was paused, and nobody could have used it.
      elapsedMs > 3 * idleCheckMs(this.#idleStopMs);
    if (busy) this.#since = now;
    return now - this.#since >= this.#idleStopMs;
  }
}

/** Linux counts processes' times in hundredths of a second for user space, whatever its own tick (proc(5); USER_HZ). */
const msPerTick = 10;

/**
 * CPU time of everything in this PID namespace but init, of what has ended too: its time went to whoever waited for it, in the
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
      // It ended meanwhile: the next look finds its time with whoever waited for it.
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
