import type { SandboxId } from '@drover/foundation';
import type { Submount } from '../../images/index.ts';
import type { NetworkAttachment } from '../../network/index.ts';
import type { Limits, Mount } from '../backend.ts';

/** What one start of a container is made from. */
export interface ContainerRequest {
  readonly id: SandboxId;
  readonly hostname: string;
  /** Read-only layers, lowest first; each a directory that the image store keeps while the image is held. */
  readonly layers: readonly string[];
  /** The layer whose owner and mode the root has. Absent: the uppermost. */
  readonly rootLayer?: string;
  /** The layer that is a directory of the host, which may be on a file system that hangs. */
  readonly foreignLayer?: string;
  /** Further overlays over the root (image `host`). */
  readonly submounts: readonly Submount[];
  readonly network: NetworkAttachment;
  readonly limits: Limits;
  readonly mounts: readonly Mount[];
  /** See StartRequest. */
  readonly secretsBytes?: number;
  /** Mounted read-only at /.drover: node, its libraries and init's bundle (I-38). */
  readonly initDirectory: string;
  /** Mounted read-write at /.drover/run. */
  readonly runDirectory: string;
}

/** Init waits at its gate while the run directory is completed and the start recorded. */
export interface StartGate {
  /** A rejection fails the start. */
  readonly completed: Promise<void>;
  readonly opening: () => Promise<void>;
}
