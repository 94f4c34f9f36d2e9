import { collectExits, isAwaited, isZombie, ownChildren, reapChild } from '@drover/linux';
import { reapIntervalMs } from '../limits.ts';
import { terminalChildren } from '../processes/children.ts';

/**
 * Reaps orphans: the children of a process that has exited become init's (I-37). Works on what /proc shows (the level); SIGCHLD and a slow
 * timer say when to look. Each zombie is reaped by its number, and never a child that init started itself: those are
 * awaited from before this thread can run again after the fork.
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
    for (const pid of ownChildren()) {
      if (isAwaited(pid) || terminalChildren.has(pid) || !isZombie(pid)) continue;
      if (reapChild(pid) !== undefined) this.#reaped++;
    }
  }
}
