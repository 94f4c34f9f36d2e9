/** The host's image store (spec 5.3): content-addressed layers and configs, unpacked once, shared by every sandbox. */
export interface Images {
  /**
   * The image, pulled and unpacked if it is not yet. One build per reference however many wait, under the agent's
   * lifetime: aborting `signal` ends this caller's waiting, not the build.
   * @throws {DroverError} invalid-image-reference, image-not-found, registry-unreachable, registry-denied, corrupt-image,
   *   unsafe-archive, too-large, disk-full, timed-out, cancelled
   */
  ensure(reference: string, options: EnsureOptions): Promise<ImageHandle>;
  list(): Promise<readonly ImageInfo[]>;
  /** @throws {DroverError} image-not-found, image-in-use */
  remove(reference: string): Promise<void>;
  /** Removes what no sandbox holds and nobody used for `olderThanMs`. */
  prune(olderThanMs: number): Promise<{ readonly removed: readonly string[]; readonly freedBytes: number }>;
  /** Keeps the image while the holder exists. Holders are named by sandbox id and survive a restart of the agent. */
  hold(digest: string, holder: string): Promise<void>;
  release(holder: string): Promise<void>;
  /** Holders that there still are, after a restart; the others are released. */
  retain(holders: ReadonlySet<string>): Promise<void>;
}

export interface EnsureOptions {
  readonly signal: AbortSignal;
  readonly onProgress?: (progress: PullProgress) => void;
  /** Plain HTTP, or a certificate that does not verify: only by explicit flag. */
  readonly insecure?: boolean;
  /** `always` asks the registry again for tags; `missing` (default) takes what the store has. */
  readonly policy?: 'missing' | 'always';
}

export interface PullProgress {
  readonly message: string;
  readonly doneBytes: number;
  /** 0 while unknown. */
  readonly totalBytes: number;
  /** Unpacked, or there already. */
  readonly doneLayers: number;
  /** 0 while unknown. */
  readonly totalLayers: number;
}

export interface ImageHandle {
  /** `sha256:…` of the manifest; for `host` and `dir:` a made-up one that is stable for the path. */
  readonly digest: string;
  /** Unpacked layers, lowest first: overlayfs lower directories. */
  readonly layers: readonly string[];
  /** The one of them whose owner and mode the root has; absent: the uppermost. */
  readonly rootLayer?: string;
  /** The one of them that is no layer of the store: the directory of `dir:`, which may be on a file system that hangs. */
  readonly foreignLayer?: string;
  /** More overlays over the root, for `host`: the runtime shows `lower` read-only under a writable layer at `target`. Empty for others. */
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
  /** How many hold it. */
  readonly holders: number;
}
