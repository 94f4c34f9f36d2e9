/** The host's image store (spec 5.3): content-addressed layers and configs, unpacked once, shared by every sandbox. */
export interface Images {
  /**
   * The image, pulled and unpacked if it is not yet. One build per reference for all waiters, under the agent's lifetime: aborting `signal`
   * ends the caller's wait, not the build.
   * @throws {DroverError} invalid-image-reference, image-not-found, registry-unreachable, registry-denied, corrupt-image,
   *   unsafe-archive, too-large, disk-full, timed-out, cancelled
   */
  ensure(reference: string, options: EnsureOptions): Promise<ImageHandle>;
  list(): Promise<readonly ImageInfo[]>;
  /** @throws {DroverError} image-not-found, image-in-use */
  remove(reference: string): Promise<void>;
  /** Removes images that no sandbox holds and that were unused for `olderThanMs`. */
  prune(olderThanMs: number): Promise<{ readonly removed: readonly string[]; readonly freedBytes: number }>;
  /** Retains the image for a holder, which is a sandbox id. Holds survive a restart of the agent. */
  hold(digest: string, holder: string): Promise<void>;
  release(holder: string): Promise<void>;
  /** Releases all holders but these. */
  retain(holders: ReadonlySet<string>): Promise<void>;
}

export interface EnsureOptions {
  readonly signal: AbortSignal;
  readonly onProgress?: (progress: PullProgress) => void;
  /** Plain HTTP, or a certificate that does not verify: only by explicit flag. */
  readonly insecure?: boolean;
  /** `always` resolves tags at the registry again; `missing` (default) uses the store. */
  readonly policy?: 'missing' | 'always';
}

export interface PullProgress {
  readonly message: string;
  readonly doneBytes: number;
  /** 0 while unknown. */
  readonly totalBytes: number;
  /** Unpacked, now or earlier. */
  readonly doneLayers: number;
  /** 0 while unknown. */
  readonly totalLayers: number;
}

export interface ImageHandle {
  /** `sha256:…` of the manifest; for `host` and `dir:` a digest that is stable for the path. */
  readonly digest: string;
  /** Unpacked layers, lowest first: overlayfs lower directories. */
  readonly layers: readonly string[];
  /** The layer whose owner and mode the root has. Absent: the uppermost. */
  readonly rootLayer?: string;
  /** The layer that is not in the store: the directory of `dir:`, which may be on a file system that hangs. */
  readonly foreignLayer?: string;
  /** For `host`, further overlays over the root. Empty for other images. */
  readonly submounts: readonly Submount[];
  readonly config: ImageConfig;
}

/** A directory of the host, under a writable layer of the sandbox. */
export interface Submount {
  /** Absolute path on the host, never written to. */
  readonly lower: string;
  /** Absolute path in the sandbox; the root's layers have a directory there. */
  readonly target: string;
}

/** The part of the OCI image config that decides what runs (image-spec, config.md). */
export interface ImageConfig {
  readonly entrypoint: readonly string[];
  readonly command: readonly string[];
  readonly env: readonly string[];
  readonly workdir: string;
  readonly user: string;
  readonly stopSignal: string;
}

export interface ImageInfo {
  readonly reference: string;
  readonly digest: string;
  readonly sizeBytes: number;
  readonly pulledAt: number;
  readonly lastUsedAt: number;
  /** The number of its holders. */
  readonly holders: number;
}
