import type { HostId } from '@drover/foundation';

/** A named volume. */
export interface VolumeRow {
  readonly name: string;
  readonly hostId: HostId;
  readonly sizeBytes: number;
  /** Until its host has made or removed it, it is `pending` or `deleting`; the row goes with the volume. */
  readonly state: 'pending' | 'ready' | 'deleting';
  readonly message: string;
  readonly hint: string;
  readonly createdAt: number;
}
