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
  /** Set by a cordon, an uncordon or a drain. */
  readonly scheduling: 'open' | 'cordoned' | 'draining';
  readonly removedAt: number | undefined;
  readonly labels: Readonly<Record<string, string>>;
  readonly zone: string;
  readonly capacity: Room & { readonly diskBytes: number };
  /**
   * The room that the placed sandboxes hold; `capacity - reserved`, floored at zero, is allocatable. A sandbox whose run has ended holds one
   * slot only, and must reserve its CPU and memory again to start.
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
  /** Why the host is down, a sentence; empty while it is connected. */
  readonly downReason: string;
  readonly lastSeenAt: number;
  readonly loadMilli: number;
  readonly memoryAvailableBytes: number;
  readonly diskAvailableBytes: number;
  readonly joinedAt: number;
  readonly certificateExpiresAt: number;
}

/** The displayed state of a host (L-25). `down` hides the scheduling. */
export function hostState(row: Pick<HostRow, 'removedAt' | 'epoch' | 'connected' | 'scheduling'>): HostStateName {
  if (row.removedAt !== undefined) return 'removed';
  if (row.epoch === 0) return 'joining';
  if (!row.connected) return 'down';
  return row.scheduling === 'open' ? 'ready' : row.scheduling;
}
