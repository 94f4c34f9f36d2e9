import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { abortable, DroverError, SerialExecutor, systemClock, type Clock, type FileRecords, type Logger } from '@drover/foundation';
import { formatImageReference, isDigest, parseImageReference, type ImageReference } from '@drover/spec';
import { hostDiskFull } from '../disks/index.ts';
import { ForeignPaths } from '../foreign/index.ts';
import { imageKeptNoSpaceMs, lastUsedResolutionMs, partialKeptMs, pullTimeoutMs as defaultPullTimeoutMs } from '../limits.ts';
import { ImageBuilder } from './builder.ts';
import type { EnsureOptions, ImageHandle, ImageInfo, Images } from './images.ts';
import { BlobStore } from './layers/blob-store.ts';
import { LayerStore } from './layers/layer-store.ts';
import type { Platform } from './manifest.ts';
import { hostPlatform } from './platform.ts';
import { ProgressReport } from './progress.ts';
import { holdRecords, imageRecords, referenceRecords, type HoldRecord, type ImageRecord, type ReferenceRecord } from './records.ts';
import type { RegistryConfig } from './registry/registry-image.ts';

export interface ImageStoreOptions {
  /** The store's own; made with mode 0700, since layers contain setuid programs. */
  readonly directory: string;
  /** Default: this machine's. */
  readonly platform?: Platform;
  readonly config?: RegistryConfig;
  /** Milliseconds. */
  readonly pullTimeoutMs?: number;
  readonly clock?: Clock;
  readonly logger: Logger;
  /** The agent's lifetime: builds run under it, not under those of their waiters. */
  readonly signal: AbortSignal;
  /** Shared with the backends. Default: its own. */
  readonly foreign?: ForeignPaths;
  /** The root of the image `host`; another in tests. */
  readonly hostRoot?: string;
}

interface Build {
  readonly done: Promise<ImageRecord>;
  readonly progress: ProgressReport;
}

/** The host's images (spec 5.3). Call `start` before anything else. */
export class ImageStore implements Images {
  readonly #directory: string;
  readonly #pullTimeoutMs: number;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #lifetime: AbortSignal;
  readonly #blobs: BlobStore;
  readonly #layers: LayerStore;
  readonly #builder: ImageBuilder;
  readonly #images: FileRecords<ImageRecord>;
  readonly #references: FileRecords<ReferenceRecord>;
  readonly #holds: FileRecords<HoldRecord>;
  /** Everything that changes the records, or removes layers, runs in it. */
  readonly #serial = new SerialExecutor(10_000);
  /** By reference: one build for all waiters. */
  readonly #builds = new Map<string, Build>();

  constructor(options: ImageStoreOptions) {
    const { directory, logger, clock = systemClock } = options;
    this.#directory = directory;
    this.#pullTimeoutMs = options.pullTimeoutMs ?? defaultPullTimeoutMs;
    this.#clock = clock;
    this.#logger = logger;
    this.#lifetime = options.signal;
    this.#blobs = new BlobStore({ blobs: join(directory, 'blobs'), partial: join(directory, 'partial'), clock });
    this.#layers = new LayerStore(options);
    this.#builder = new ImageBuilder({
      scratch: join(directory, 'scratch'),
      platform: options.platform ?? hostPlatform(),
      config: options.config ?? {},
      hostRoot: options.hostRoot ?? '/',
      blobs: this.#blobs,
      layers: this.#layers,
      foreign: options.foreign ?? new ForeignPaths(),
      clock,
      logger,
      register: async (name, record) => await this.#register(name, record),
    });
    this.#images = imageRecords(join(directory, 'images'), logger);
    this.#references = referenceRecords(join(directory, 'references'), logger);
    this.#holds = holdRecords(join(directory, 'holds'), logger);
  }

  /** Reads the store and sweeps the remains of a crash. */
  async start(): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    for (const name of ['blobs', 'partial', 'scratch']) await mkdir(join(this.#directory, name), { recursive: true, mode: 0o700 });
    for (const file of await readdir(join(this.#directory, 'scratch'))) await rm(join(this.#directory, 'scratch', file), { force: true });
    // Whole blobs that wait for being unpacked are progress, and are retained as long as unfinished ones.
    for (const file of await readdir(join(this.#directory, 'blobs'))) {
      const path = join(this.#directory, 'blobs', file);
      if (this.#clock.now() - (await stat(path)).mtimeMs > partialKeptMs) await rm(path, { force: true });
    }
    await this.#blobs.sweep();
    await this.#layers.start();
    await this.#images.load();
    await this.#references.load();
    await this.#holds.load();
  }

  /** Resolves when nothing of the store runs any more, after the end of its lifetime. */
  async stopped(): Promise<void> {
    await Promise.allSettled([...this.#builds.values()].map((build) => build.done));
    await this.#serial.idle();
    await this.#layers.idle();
  }

  async ensure(text: string, options: EnsureOptions): Promise<ImageHandle> {
    const reference = parseImageReference(text);
    const name = formatImageReference(reference);
    if (options.signal.aborted) throw cancelled(name, options.signal.reason);
    const known = this.#known(reference, name, options.policy ?? 'missing');
    if (known !== undefined) {
      this.#touch(name);
      return this.#handle(known);
    }
    const insecure = options.insecure ?? false;
    // A caller who insists on verification does not share an unverified build.
    const key = `${name} ${insecure ? 'insecure' : 'verified'}`;
    const build = this.#builds.get(key) ?? this.#begin(key, reference, name, insecure);
    const stop = options.onProgress === undefined ? undefined : build.progress.listen(options.onProgress);
    try {
      return this.#handle(await abortable(build.done, options.signal));
    } catch (error) {
      // the wait ends, the build goes on.
      if (options.signal.aborted) throw cancelled(name, error);
      throw error;
    } finally {
      stop?.();
    }
  }

  async list(): Promise<readonly ImageInfo[]> {
    const images = this.#references.all().map(({ reference, digest, pulledAt, lastUsedAt }) => {
      const layers = this.#images.get(digest)?.layers ?? [];
      const sizeBytes = layers.reduce((sum, layer) => sum + this.#layers.bytes(layer), 0);
      return { reference, digest, sizeBytes, pulledAt, lastUsedAt, holders: this.#holders(digest) };
    });
    return await Promise.resolve(images.sort((a, b) => a.reference.localeCompare(b.reference)));
  }

  async remove(text: string): Promise<void> {
    const name = isDigest(text) ? undefined : formatImageReference(parseImageReference(text));
    await this.#serial.run(async () => {
      const found = this.#references.all().filter(({ digest, reference }) => (name === undefined ? digest === text : reference === name));
      const [first] = found;
      if (first === undefined) {
        throw new DroverError('image-not-found', `this host has no image ${text}`, { hint: 'see `drover image ls`' });
      }
      const others = this.#references.all().some((record) => record.digest === first.digest && !found.includes(record));
      const holders = this.#holders(first.digest);
      if (holders > 0 && !others) {
        throw new DroverError('image-in-use', `${holders} sandbox${holders === 1 ? ' uses' : 'es use'} the image ${text}`, {
          hint: 'remove the sandboxes first',
        });
      }
      for (const record of found) await this.#references.delete(record.reference);
      await this.#collect();
    });
  }

  async prune(olderThanMs: number): Promise<{ readonly removed: readonly string[]; readonly freedBytes: number }> {
    return await this.#serial.run(async () => {
      const removed: string[] = [];
      const now = this.#clock.now();
      for (const record of this.#references.all()) {
        if (this.#holders(record.digest) > 0 || now - record.lastUsedAt < olderThanMs) continue;
        await this.#references.delete(record.reference);
        removed.push(record.reference);
      }
      const freedBytes = await this.#collect();
      // The progress of failed builds is retained unless everything unused is to be removed.
      const progressBytes = olderThanMs === 0 ? await this.#blobs.clear(() => this.#builds.size === 0) : 0;
      return { removed, freedBytes: freedBytes + progressBytes };
    });
  }

  async hold(digest: string, holder: string): Promise<void> {
    await this.#serial.run(async () => {
      if (!this.#isComplete(this.#images.get(digest))) {
        throw new DroverError('image-not-found', `this host has no image ${digest} any more`, { hint: 'try again: it is pulled again' });
      }
      const digests = this.#holds.get(holder)?.digests ?? [];
      if (!digests.includes(digest)) await this.#holds.put({ holder, digests: [...digests, digest] });
    });
  }

  async release(holder: string): Promise<void> {
    await this.#serial.run(async () => await this.#release(holder));
  }

  async retain(holders: ReadonlySet<string>): Promise<void> {
    await this.#serial.run(async () => {
      for (const { holder } of this.#holds.all()) if (!holders.has(holder)) await this.#release(holder);
    });
  }

  async #release(holder: string): Promise<void> {
    const held = this.#holds.get(holder);
    if (held === undefined) return;
    await this.#holds.delete(holder);
    // An image's age counts from the end of its last sandbox.
    for (const record of this.#references.all()) {
      if (held.digests.includes(record.digest)) await this.#renew(record);
    }
  }

  #holders(digest: string): number {
    return this.#holds.all().filter((hold) => hold.digests.includes(digest)).length;
  }

  #isComplete(record: ImageRecord | undefined): record is ImageRecord {
    return record?.layers.every((layer) => this.#layers.has(layer)) === true;
  }

  #handle({ digest, layers, rootLayer, submounts, config }: ImageRecord): ImageHandle {
    const foreignLayer = layers.find((layer) => layer.startsWith('/'));
    return {
      digest,
      ...(foreignLayer !== undefined && { foreignLayer }),
      layers: layers.map((layer) => this.#layers.path(layer)),
      ...(rootLayer !== undefined && { rootLayer: this.#layers.path(rootLayer) }),
      submounts,
      config,
    };
  }

  /** An image that needs no build. Archives, directories and the host may have changed, so they are built each time. */
  #known(reference: ImageReference, name: string, policy: 'missing' | 'always'): ImageRecord | undefined {
    if (reference.kind === 'host') {
      const { host } = this.#builder;
      return host !== undefined && this.#isComplete(this.#images.get(host.digest)) ? host : undefined;
    }
    if (reference.kind !== 'registry' || (policy === 'always' && reference.digest === undefined)) return undefined;
    const record = this.#images.get(this.#references.get(name)?.digest ?? '');
    return this.#isComplete(record) ? record : undefined;
  }

  /** At a coarse resolution: each write waits for the disk, and every create and destroy would make one. */
  #isStale({ lastUsedAt }: ReferenceRecord): boolean {
    return this.#clock.now() - lastUsedAt >= lastUsedResolutionMs;
  }

  async #renew(record: ReferenceRecord | undefined): Promise<void> {
    if (record !== undefined && this.#isStale(record)) await this.#references.put({ ...record, lastUsedAt: this.#clock.now() });
  }

  #touch(name: string): void {
    const record = this.#references.get(name);
    if (record === undefined || !this.#isStale(record)) return;
    this.#serial
      .run(async () => await this.#renew(this.#references.get(name)))
      // Only the age for pruning is lost.
      .catch((error: unknown) => this.#logger.warn({ image: name, err: error }, 'the last use of an image could not be written'));
  }

  #begin(key: string, reference: ImageReference, name: string, insecure: boolean): Build {
    const progress = new ProgressReport(this.#clock, `resolving ${name}`);
    const done = this.#build(reference, name, insecure, progress).finally(() => this.#builds.delete(key));
    // Waiters receive the error; there may be none.
    done.catch((error: unknown) => this.#logger.warn({ image: name, err: error }, 'an image could not be prepared'));
    const build = { done, progress };
    this.#builds.set(key, build);
    return build;
  }

  async #build(reference: ImageReference, name: string, insecure: boolean, progress: ProgressReport): Promise<ImageRecord> {
    const timeout = new AbortController();
    const finished = new AbortController();
    const signal = AbortSignal.any([this.#lifetime, timeout.signal]);
    const startedAt = this.#clock.now();
    this.#clock.sleep(this.#pullTimeoutMs, finished.signal).then(
      () =>
        timeout.abort(
          new DroverError('timed-out', `the image ${name} was not ready after ${Math.round(this.#pullTimeoutMs / 1000)} s`, {
            hint: 'try again: it continues where it stopped',
          }),
        ),
      // The build finished first.
      () => undefined,
    );
    try {
      const build = async (): Promise<ImageRecord> => await this.#builder.build(reference, name, insecure, progress, signal);
      const record = await build().catch(async (error: unknown) => {
        // by space. Unused images make room for an image that is needed now.
        if (DroverError.from(error).code !== 'disk-full' || (await this.#makeRoom(progress)) === 0) throw error;
        return await build();
      });
      this.#logger.info({ image: name, digest: record.digest, ms: this.#clock.now() - startedAt }, 'image ready');
      progress.step(`${name} is ready`);
      return record;
    } catch (error) {
      if (this.#lifetime.aborted) throw cancelled(name, error);
      if (timeout.signal.aborted) throw timeout.signal.reason;
      const known = DroverError.from(error);
      throw known.code === 'disk-full' ? await hostDiskFull(this.#directory, `the image ${name} does not fit`, error) : known;
    } finally {
      finished.abort();
    }
  }

  /** @returns freed bytes */
  async #makeRoom(progress: ProgressReport): Promise<number> {
    progress.step('the disk is full: removing images that no sandbox uses');
    const { removed, freedBytes } = await this.prune(imageKeptNoSpaceMs);
    this.#logger.warn({ removed, freedBytes }, 'images were removed to make room for another');
    return freedBytes;
  }

  async #register(name: string, record: ImageRecord): Promise<ImageRecord> {
    return await this.#serial.run(async () => {
      // `host` is registered for each create, which must not wait for the disk when nothing changes.
      const known = this.#references.get(name);
      const isSame = known?.digest === record.digest && isDeepStrictEqual(this.#images.get(record.digest), record);
      if (isSame && !this.#isStale(known)) return record;
      await this.#images.put(record);
      const now = this.#clock.now();
      await this.#references.put({ reference: name, digest: record.digest, pulledAt: now, lastUsedAt: now });
      return record;
    });
  }

  /** removes images without a name or a holder, and layers without an image; never those that are held or being built. */
  async #collect(): Promise<number> {
    const named = new Set(this.#references.all().map((record) => record.digest));
    for (const { digest } of this.#images.all()) {
      if (!named.has(digest) && this.#holders(digest) === 0) await this.#images.delete(digest);
    }
    const needed = new Set(this.#images.all().flatMap(({ layers, rootLayer }) => [...layers, rootLayer]));
    let freedBytes = 0;
    for (const layer of this.#layers.names()) {
      if (!needed.has(layer) && !this.#builder.isPinned(layer)) freedBytes += await this.#layers.remove(layer);
    }
    return freedBytes;
  }
}

function cancelled(name: string, cause: unknown): DroverError {
  return new DroverError('cancelled', `waiting for the image ${name} was cancelled`, {
    hint: 'the next try continues from the present progress',
    cause,
  });
}
