import type { HostId } from '@drover/foundation';
import type { HostStateName } from '@drover/protocol';

export interface Room {
  readonly cpuMillis: number;
  readonly memoryBytes: number;
  readonly slots: number;
}

/** Times are milliseconds since the epoch. */
export interface HostRow {
  readonly id: HostId;
  readonly name: string;
  /** Set by people. */
  readonly scheduling: 'open' | 'cordoned' | 'draining';
  readonly removedAt: number | undefined;
  readonly labels: Readonly<Record<string, string>>;
  readonly zone: string;
  readonly capacity: Room & { readonly diskBytes: number };
  /**
   * Held by the sandboxes placed here; `capacity - reserved`, floored at zero, is allocatable. A sandbox whose run is over holds a slot
   * only. To start again it takes its CPU and memory again, or waits for them.
   */
  readonly reserved: Room;
  readonly runtimes: readonly string[];
  readonly agentVersion: string;
  readonly bootId: string;
  /** The fencing epoch of the newest stream; 0 before the first. */
  readonly epoch: number;
  /** The replica that holds the stream; empty when none does. */
  readonly owner: string;
  readonly connected: boolean;
  readonly downSince: number | undefined;
  /** Why it is down, for people; empty while it is not. */
  readonly downReason: string;
  readonly lastSeenAt: number;
  readonly loadMilli: number;
  readonly memoryAvailableBytes: number;
  readonly diskAvailableBytes: number;
  readonly joinedAt: number;
  readonly certificateExpiresAt: number;
}

/** The displayed state of a host (L-25). A host that is down shows that, whatever its scheduling is. */
export function hostState(row: Pick<HostRow, 'removedAt' | 'epoch' | 'connected' | 'scheduling'>): HostStateName {
  if (row.removedAt !== undefined) return 'removed';
  if (row.epoch === 0) return 'joining';
  if (!row.connected) return 'down';
  return row.scheduling === 'open' ? 'ready' : row.scheduling;
}
