import type { HostId } from '@drover/foundation';

/** A named volume. */
export interface VolumeRow {
  readonly name: string;
  readonly hostId: HostId;
  readonly sizeBytes: number;
  /** `pending`: the host has not created the volume yet. `deleting`: it has not removed it yet; the row is then deleted. */
  readonly state: 'pending' | 'ready' | 'deleting';
  readonly message: string;
  readonly hint: string;
  readonly createdAt: number;
}
