import { createHash } from 'node:crypto';
import { FileRecords, type Logger } from '@drover/foundation';
import { fileNameOf } from './digest.ts';
import type { ImageConfig, Submount } from './images.ts';

/** An image whose layers are all in the store. */
export interface ImageRecord {
  readonly digest: string;
  /** Lowest first: a name below `layers/`, or an absolute path (`dir:`). */
  readonly layers: readonly string[];
  readonly submounts: readonly Submount[];
  readonly config: ImageConfig;
  /** The layer whose entry for the root decides the root's owner and mode. Absent, as in records of earlier agents: the uppermost. */
  readonly rootLayer?: string;
}

/** A reference and its image. */
export interface ReferenceRecord {
  readonly reference: string;
  readonly digest: string;
  /** Milliseconds since the epoch. */
  readonly pulledAt: number;
  readonly lastUsedAt: number;
}

/** The images that a holder keeps from being removed. */
export interface HoldRecord {
  readonly holder: string;
  readonly digests: readonly string[];
}

/** An unpacked layer. A directory without a record is no layer. */
export interface LayerRecord {
  readonly name: string;
  readonly bytes: number;
  readonly entries: number;
  /** The boot it was unpacked in. A layer that is not `durable` does not count after another boot. */
  readonly boot: string;
  readonly durable: boolean;
  /** The layer is correct as a lowest layer only. Absent in records of earlier agents, as the next two. */
  readonly relative?: boolean;
  readonly rootEntry?: boolean;
  /** The layer hides every layer below it. */
  readonly opaqueRoot?: boolean;
}

const hashed = (key: string): string => createHash('sha256').update(key).digest('hex');

/** A damaged record is removed: images can be pulled again, and holders renew their holds. */
function open<T>(directory: string, logger: Logger, key: (record: T) => string, fileName = hashed, sync = true): FileRecords<T> {
  // Only the store writes them.
  return new FileRecords({ directory, key, fileName, parse: (value) => value as T, sync, logger });
}

export const imageRecords = (directory: string, logger: Logger): FileRecords<ImageRecord> =>
  open(directory, logger, (record) => record.digest, fileNameOf);
export const referenceRecords = (directory: string, logger: Logger): FileRecords<ReferenceRecord> =>
  open(directory, logger, (record) => record.reference);
/** Not synced: each create writes one, and no sandbox that holds an image survives a power cut. */
export const holdRecords = (directory: string, logger: Logger): FileRecords<HoldRecord> =>
  open(directory, logger, (record) => record.holder, hashed, false);
export const layerRecords = (directory: string, logger: Logger): FileRecords<LayerRecord> =>
  open(
    directory,
    logger,
    (record) => record.name,
    (name) => name,
  );
