import { ownOomKills } from '@drover/linux';
import { oomClaimMs } from '../limits.ts';

/**
 * Attributes out-of-memory kills to processes. The kernel counts such kills in the sandbox's cgroup and does not report which process each one
 * hit. A kill is attributed to a process that ended as by SIGKILL, that init did not kill, when the count has just risen.
 */
export class OomKills {
  readonly #root: string | undefined;
  readonly #now: () => number;
  #seen: number;
  #unclaimed = 0;
  #seenAt = Number.NEGATIVE_INFINITY;

  /** @param root where the sandbox's cgroup is mounted */
  constructor(root?: string, now = () => performance.now()) {
    this.#root = root;
    this.#now = now;
    this.#seen = ownOomKills(root);
  }

  /** Counts the kills so far. Called when processes start and end, so that a kill is not attributed to a later process. */
  count(): void {
    const count = ownOomKills(this.#root);
    if (count <= this.#seen) return;
    if (this.#now() - this.#seenAt > oomClaimMs) this.#unclaimed = 0;
    this.#unclaimed += count - this.#seen;
    this.#seen = count;
    this.#seenAt = this.#now();
  }

  /** Whether there is a kill to attribute to a process that has just ended. Each kill is attributed once. */
  claim(): boolean {
    this.count();
    if (this.#unclaimed === 0 || this.#now() - this.#seenAt > oomClaimMs) return false;
    this.#unclaimed--;
    return true;
  }
}
