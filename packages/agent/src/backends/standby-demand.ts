import { totalmem } from 'node:os';
import { maxDefaultStandbys, memoryPerStandby, standbyBurstMs, standbyDemandMs } from '../limits.ts';

/** For how many standbys a host of this size sets memory aside. */
export function defaultStandbys(memoryBytes = totalmem()): number {
  return Math.min(maxDefaultStandbys, Math.floor(memoryBytes / memoryPerStandby));
}

/** How many standbys a host keeps at least and at most. */
export interface StandbyRange {
  readonly least: number;
  readonly most: number;
}

/** @param most the host sets memory aside for so many; 0: none */
export function standbyRange(most: number): StandbyRange {
  return { least: Math.ceil(most / 4), most };
}

/**
 * How many standbys to keep: enough for the largest burst of creates in the recent past, within the range. A host that has only just started
 * expects the largest.
 * @param creates when the recent creates began, oldest first; milliseconds, as `now` and `openedAt`
 */
export function standbyTarget(creates: readonly number[], openedAt: number, now: number, { least, most }: StandbyRange): number {
  if (now - openedAt < standbyDemandMs) return most;
  const recent = creates.filter((at) => now - at < standbyDemandMs);
  let burst = 0;
  let first = 0;
  for (const [last, at] of recent.entries()) {
    while (at - (recent[first] ?? at) >= standbyBurstMs) first++;
    burst = Math.max(burst, last - first + 1);
  }
  return Math.min(most, Math.max(least, burst));
}
