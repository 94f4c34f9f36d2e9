import type { ImageConfig } from './images.ts';
import type { LayerFile } from './unpack.ts';

/** An image that was found, with its manifest read and verified; its layers are fetched one by one. */
export interface FoundImage {
  /** Of the manifest; of the config, where an archive has no manifest of the OCI kind. */
  readonly digest: string;
  readonly config: ImageConfig;
  /** Lowest first. */
  readonly layers: readonly FoundLayer[];
}

export interface FoundLayer {
  /** Digest of the uncompressed layer (image-spec config.md, rootfs.diff_ids). */
  readonly diffId: string;
  /** As it is stored; for the progress. Bytes. */
  readonly size: number;
  /** Brings the layer's bytes to this host. What is downloaded is kept for the next try until `discard`. */
  fetch(onBytes: (doneBytes: number) => void, signal: AbortSignal): Promise<LayerFile>;
  /** The layer is unpacked, or was found corrupt: its packed form is not needed any more. */
  discard(): Promise<void>;
}
