import type { ImageConfig } from './images.ts';
import type { LayerFile } from './unpack/unpack.ts';

/** An image whose manifest is read and verified; its layers are fetched one by one. */
export interface FoundImage {
  /** Of the manifest, or of the config where an archive has no OCI manifest. */
  readonly digest: string;
  readonly config: ImageConfig;
  /** Lowest first. */
  readonly layers: readonly FoundLayer[];
}

export interface FoundLayer {
  /** Digest of the uncompressed layer (image-spec config.md, rootfs.diff_ids). */
  readonly diffId: string;
  /** As stored, for the progress. Bytes. */
  readonly size: number;
  /** Fetches the layer's bytes. They are retained for the next try until `discard`. */
  fetch(onBytes: (doneBytes: number) => void, signal: AbortSignal): Promise<LayerFile>;
  /** The layer is unpacked or corrupt, and its packed form is not needed any more. */
  discard(): Promise<void>;
}
