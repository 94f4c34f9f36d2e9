import { readFileSync } from 'node:fs';
import { reapIntervalMs } from '../limits.ts';
import { collectExits, ownChildren } from '../processes/children.ts';
import { loadLibc } from '../processes/libc.ts';

/**
 * Reaps orphans: the children of a process that has exited become init's (I-37). Works on what /proc shows (the level); SIGCHLD and a slow
 * timer say when to look. Each zombie is reaped by its number, and never a child that init started itself: those are in `ownChildren` from
 * before this thread can run again after the fork.
 */
export class Reaper {
  readonly #timer: NodeJS.Timeout;
  readonly #look = (): void => this.#schedule();
  #scheduled = false;
  #reaped = 0;

  constructor() {
    process.on('SIGCHLD', this.#look);
    this.#timer = setInterval(this.#look, reapIntervalMs);
    this.#timer.unref();
  }

  get reaped(): number {
    return this.#reaped;
  }

  stop(): void {
    process.off('SIGCHLD', this.#look);
    clearInterval(this.#timer);
  }

  /** Signals coalesce: one look for any number of them. */
  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.reap();
    });
  }

  reap(): void {
    collectExits();
    for (const pid of children()) {
      if (ownChildren.has(pid) || !isZombie(pid)) continue;
      if (loadLibc()?.reap(pid) !== undefined) this.#reaped++;
    }
  }
}

function children(): readonly number[] {
  const text = readOr(`/proc/self/task/${process.pid}/children`);
  return text === '' ? [] : text.trim().split(' ').map(Number).filter(Boolean);
}

/** proc_pid_stat(5): the state follows the name, which is in parentheses and may hold anything. */
function isZombie(pid: number): boolean {
  const stat = readOr(`/proc/${pid}/stat`);
  return stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3) === 'Z';
}

function readOr(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    // It has gone meanwhile, or there is no /proc to look at.
    return '';
  }
}
