import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { oomClaimMs } from '../limits.ts';

/** The kernel's own count of kills in this sandbox's cgroup: version 2, and version 1 or hybrid. */
const counters = ['memory.events', 'memory/memory.oom_control'];

/**
 * Says whether a process was killed because the sandbox had no memory left. The kernel counts such kills and does not say whom they hit: a
 * kill is attributed to a process that ended as by SIGKILL, that init did not kill, when the count has just risen.
 */
export class OomKills {
  readonly #root: string;
  readonly #now: () => number;
  #seen: number;
  #unclaimed = 0;
  #seenAt = Number.NEGATIVE_INFINITY;

  constructor(root = '/sys/fs/cgroup', now = () => performance.now()) {
    this.#root = root;
    this.#now = now;
    this.#seen = this.#count();
  }

  /** Takes note of the kills so far. Called when processes start and end, so that an old kill is not attributed to a later one. */
  look(): void {
    const count = this.#count();
    if (count <= this.#seen) return;
    if (this.#now() - this.#seenAt > oomClaimMs) this.#unclaimed = 0;
    this.#unclaimed += count - this.#seen;
    this.#seen = count;
    this.#seenAt = this.#now();
  }

  /** Whether there is a kill to attribute to a process that has just ended; it is attributed once. */
  claim(): boolean {
    this.look();
    if (this.#unclaimed === 0 || this.#now() - this.#seenAt > oomClaimMs) return false;
    this.#unclaimed--;
    return true;
  }

  #count(): number {
    for (const name of counters) {
      try {
        return Number(/^oom_kill (\d+)$/m.exec(readFileSync(join(this.#root, name), 'latin1'))?.[1] ?? 0);
      } catch {
        // The other version's, or a sandbox without its cgroup.
      }
    }
    return 0;
  }
}
