import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { abortable, DroverError, SerialExecutor, systemClock, type Clock, type Logger } from '@drover/foundation';
import {
  formatImageReference,
  isDigest,
  parseImageReference,
  type ArchiveReference,
  type DirectoryReference,
  type ImageReference,
  type RegistryReference,
} from '@drover/spec';
import { hostDiskFull } from '../disks/index.ts';
import { ForeignPaths } from '../foreign/index.ts';
import { imageKeptNoSpaceMs, lastUsedResolutionMs, partialKeptMs, pullTimeoutMs as defaultPullTimeoutMs } from '../limits.ts';
import { openArchive } from './archives.ts';
import { BlobStore } from './blobs.ts';
import { digestOf, fileNameOf } from './digest.ts';
import { buildHostTree, hostSignature } from './host.ts';
import type { EnsureOptions, ImageConfig, ImageHandle, ImageInfo, Images } from './images.ts';
import { LayerStore, placeNames } from './layers.ts';
import { hostPlatform, type Platform } from './manifest.ts';
import { ProgressReport } from './progress.ts';
import {
  holdRecords,
  imageRecords,
  referenceRecords,
  type HoldRecord,
  type ImageRecord,
  type Records,
  type ReferenceRecord,
} from './records.ts';
import type { RegistryConfig } from './registry.ts';
import type { FoundImage } from './source.ts';

export interface ImageStoreOptions {
  /** The store's own; made with mode 0700, since layers have setuid programs. */
  readonly directory: string;
  /** Default: this machine's. */
  readonly platform?: Platform;
  readonly config?: RegistryConfig;
  /** Milliseconds. */
  readonly pullTimeoutMs?: number;
  readonly clock?: Clock;
  readonly logger: Logger;
  /** The agent's lifetime: builds run under it, not under those who wait for them. */
  readonly signal: AbortSignal;
  /** Shared with the runtime. Default: its own. */
  readonly foreign?: ForeignPaths;
  /** The root of the image `host`; another in tests. */
  readonly hostRoot?: string;
}

interface Build {
  readonly done: Promise<ImageRecord>;
  readonly progress: ProgressReport;
}

const defaultPath = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
/** `host` and `dir:` say nothing about what runs. */
const plainConfig: ImageConfig = { entrypoint: [], command: ['/bin/sh'], env: [defaultPath], workdir: '/', user: '', stopSignal: '' };

/** The host's images (spec 5.3). Call `start` before anything else. */
export class ImageStore implements Images {
  readonly #directory: string;
  readonly #platform: Platform;
  readonly #config: RegistryConfig;
  readonly #pullTimeoutMs: number;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #lifetime: AbortSignal;
  readonly #hostRoot: string;
  readonly #foreign: ForeignPaths;
  readonly #blobs: BlobStore;
  readonly #layers: LayerStore;
  readonly #images: Records<ImageRecord>;
  readonly #references: Records<ReferenceRecord>;
  readonly #holds: Records<HoldRecord>;
  /** Owner of the records: whatever changes them, or removes layers, runs in it. */
  readonly #serial = new SerialExecutor(10_000);
  /** By reference: one build however many wait. */
  readonly #builds = new Map<string, Build>();
  /** Layers that builds under way count on, and how many do. */
  readonly #pinned = new Map<string, number>();
  #host: { readonly signature: string; readonly record: ImageRecord } | undefined;

  constructor(options: ImageStoreOptions) {
    this.#directory = options.directory;
    this.#platform = options.platform ?? hostPlatform();
    this.#config = options.config ?? {};
    this.#pullTimeoutMs = options.pullTimeoutMs ?? defaultPullTimeoutMs;
    this.#clock = options.clock ?? systemClock;
    this.#logger = options.logger;
    this.#lifetime = options.signal;
    this.#hostRoot = options.hostRoot ?? '/';
    this.#foreign = options.foreign ?? new ForeignPaths();
    const below = (name: string): string => join(options.directory, name);
    this.#blobs = new BlobStore({ blobs: below('blobs'), partial: below('partial'), clock: this.#clock });
    this.#layers = new LayerStore(options);
    this.#images = imageRecords(below('images'));
    this.#references = referenceRecords(below('references'));
    this.#holds = holdRecords(below('holds'));
  }

  /** Reads the store and sweeps what a crash left in it. */
  async start(): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    for (const name of ['blobs', 'partial', 'scratch']) await mkdir(join(this.#directory, name), { recursive: true, mode: 0o700 });
    for (const file of await readdir(join(this.#directory, 'scratch'))) await rm(join(this.#directory, 'scratch', file), { force: true });
    // Whole blobs that wait for being unpacked are progress, for as long as unfinished ones are.
    for (const file of await readdir(join(this.#directory, 'blobs'))) {
      const path = join(this.#directory, 'blobs', file);
      if (this.#clock.now() - (await stat(path)).mtimeMs > partialKeptMs) await rm(path, { force: true });
    }
    await this.#blobs.sweep();
    await this.#layers.start();
    await this.#images.load(this.#logger);
    await this.#references.load(this.#logger);
    await this.#holds.load(this.#logger);
  }

  /** Resolves when nothing of the store runs any more, after its lifetime ended. */
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
    // A caller who insists on verification does not share a build that gave it up.
    const key = `${name} ${insecure ? 'insecure' : 'verified'}`;
    const build = this.#builds.get(key) ?? this.#start(key, reference, name, insecure);
    const stop = options.onProgress === undefined ? undefined : build.progress.listen(options.onProgress);
    try {
      return this.#handle(await abortable(build.done, options.signal));
    } catch (error) {
      // the waiting ends, the build goes on.
      if (options.signal.aborted) throw cancelled(name, error);
      throw error;
    } finally {
      stop?.();
    }
  }

  async list(): Promise<readonly ImageInfo[]> {
    return this.#references
      .all()
      .map((record) => ({
        reference: record.reference,
        digest: record.digest,
        sizeBytes: (this.#images.get(record.digest)?.layers ?? []).reduce((sum, layer) => sum + this.#layers.bytes(layer), 0),
        pulledAt: record.pulledAt,
        lastUsedAt: record.lastUsedAt,
        holders: this.#holders(record.digest),
      }))
      .sort((a, b) => a.reference.localeCompare(b.reference));
  }

  async remove(text: string): Promise<void> {
    const matches = isDigest(text)
      ? (record: ReferenceRecord): boolean => record.digest === text
      : (
          (name) =>
          (record: ReferenceRecord): boolean =>
            record.reference === name
        )(formatImageReference(parseImageReference(text)));
    await this.#serial.run(async () => {
      const found = this.#references.all().filter(matches);
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
    return this.#serial.run(async () => {
      const removed: string[] = [];
      const now = this.#clock.now();
      for (const record of this.#references.all()) {
        if (this.#holders(record.digest) > 0 || now - record.lastUsedAt < olderThanMs) continue;
        await this.#references.delete(record.reference);
        removed.push(record.reference);
      }
      const freedBytes = await this.#collect();
      // Progress of builds that failed is kept unless everything unused is to go.
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
    await this.#serial.run(() => this.#release(holder));
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
    // Its age counts from the last sandbox's end.
    for (const record of this.#references.all()) {
      if (held.digests.includes(record.digest) && this.#isStale(record))
        await this.#references.put({ ...record, lastUsedAt: this.#clock.now() });
    }
  }

  #holders(digest: string): number {
    return this.#holds.all().filter((hold) => hold.digests.includes(digest)).length;
  }

  #isComplete(record: ImageRecord | undefined): record is ImageRecord {
    return record?.layers.every((layer) => this.#layers.has(layer)) === true;
  }

  #handle(record: ImageRecord): ImageHandle {
    const foreignLayer = record.layers.find((layer) => layer.startsWith('/'));
    return {
      digest: record.digest,
      ...(foreignLayer !== undefined && { foreignLayer }),
      layers: record.layers.map((layer) => this.#layers.path(layer)),
      ...(record.rootLayer !== undefined && { rootLayer: this.#layers.path(record.rootLayer) }),
      submounts: record.submounts,
      config: record.config,
    };
  }

  /** What needs no build. Archives, directories and the host are looked at each time: they may have changed. */
  #known(reference: ImageReference, name: string, policy: 'missing' | 'always'): ImageRecord | undefined {
    if (reference.kind === 'host') {
      const host = this.#host;
      if (host === undefined || !this.#isComplete(this.#images.get(host.record.digest))) return undefined;
      return hostSignature(this.#hostRoot) === host.signature ? host.record : undefined;
    }
    if (reference.kind !== 'registry' || (policy === 'always' && reference.digest === undefined)) return undefined;
    const record = this.#images.get(this.#references.get(name)?.digest ?? '');
    return this.#isComplete(record) ? record : undefined;
  }

  /** Each is a write that waits for the disk, and on the way of every create and destroy. */
  #isStale({ lastUsedAt }: ReferenceRecord): boolean {
    return this.#clock.now() - lastUsedAt >= lastUsedResolutionMs;
  }

  #touch(name: string): void {
    const record = this.#references.get(name);
    if (record === undefined || !this.#isStale(record)) return;
    this.#serial
      .run(async () => {
        const current = this.#references.get(name);
        if (current !== undefined && this.#isStale(current)) await this.#references.put({ ...current, lastUsedAt: this.#clock.now() });
      })
      // Only the age for pruning is lost.
      .catch((error: unknown) => this.#logger.warn({ image: name, err: error }, 'the last use of an image could not be written'));
  }

  #start(key: string, reference: ImageReference, name: string, insecure: boolean): Build {
    const progress = new ProgressReport(this.#clock, `resolving ${name}`);
    const done = this.#build(reference, name, insecure, progress).finally(() => this.#builds.delete(key));
    // Whoever waits gets the error; that nobody waits any more is no reason to fall over.
    done.catch((error: unknown) => this.#logger.warn({ image: name, err: error }, 'an image could not be prepared'));
    const build = { done, progress };
    this.#builds.set(key, build);
    return build;
  }

  async #build(reference: ImageReference, name: string, insecure: boolean, progress: ProgressReport): Promise<ImageRecord> {
    const timeout = new AbortController();
    const over = new AbortController();
    const signal = AbortSignal.any([this.#lifetime, timeout.signal]);
    const startedAt = this.#clock.now();
    this.#clock.sleep(this.#pullTimeoutMs, over.signal).then(
      () =>
        timeout.abort(
          new DroverError('timed-out', `the image ${name} was not there after ${Math.round(this.#pullTimeoutMs / 1000)} s`, {
            hint: 'try again: it goes on where it stopped',
          }),
        ),
      // The build was done before.
      () => undefined,
    );
    try {
      const make = async (): Promise<ImageRecord> => await this.#make(reference, name, insecure, progress, signal);
      const record = await make().catch(async (error: unknown) => {
        // by space. Images that no sandbox uses make room for one that is needed now.
        if (DroverError.from(error).code !== 'disk-full' || (await this.#makeRoom(progress)) === 0) throw error;
        return await make();
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
      over.abort();
    }
  }

  /** @returns freed bytes */
  async #makeRoom(progress: ProgressReport): Promise<number> {
    progress.step('the disk is full: removing images that no sandbox uses');
    const { removed, freedBytes } = await this.prune(imageKeptNoSpaceMs);
    this.#logger.warn({ removed, freedBytes }, 'images were removed to make room for another');
    return freedBytes;
  }

  async #make(
    reference: ImageReference,
    name: string,
    insecure: boolean,
    progress: ProgressReport,
    signal: AbortSignal,
  ): Promise<ImageRecord> {
    if (reference.kind === 'host') return this.#makeHost(name);
    if (reference.kind === 'dir') return this.#register(name, await directoryImage(reference, this.#foreign));
    if (reference.kind === 'registry') return this.#makeFromRegistry(reference, name, insecure, progress, signal);
    return this.#makeFromArchive(reference, name, progress, signal);
  }

  async #makeFromRegistry(
    reference: RegistryReference,
    name: string,
    insecure: boolean,
    progress: ProgressReport,
    signal: AbortSignal,
  ): Promise<ImageRecord> {
    // With the HTTP client, which no start of an agent waits for.
    const { RegistryImage } = await import('./registry.ts');
    await using source = new RegistryImage({
      reference,
      config: this.#config,
      insecure,
      platform: this.#platform,
      blobs: this.#blobs,
      foreign: this.#foreign,
      clock: this.#clock,
      logger: this.#logger,
    });
    return await this.#fill(name, await source.find(signal), progress, signal);
  }

  async #makeFromArchive(reference: ArchiveReference, name: string, progress: ProgressReport, signal: AbortSignal): Promise<ImageRecord> {
    const scratch = join(this.#directory, 'scratch');
    const make = async (): Promise<ImageRecord> => {
      const { image, files } = await openArchive({ reference, platform: this.#platform, scratch }, signal);
      await using _files = files;
      return await this.#fill(name, image, progress, signal);
    };
    return await this.#foreign.inPool('archive', reference.path, make, signal);
  }

  async #fill(name: string, found: FoundImage, progress: ProgressReport, signal: AbortSignal): Promise<ImageRecord> {
    // overlayfs takes a directory once. Of a layer that an image lists twice the uppermost counts: it covers all that lies below.
    const layers = found.layers.filter((layer, i) => !found.layers.slice(i + 1).some((later) => later.diffId === layer.diffId));
    const places = placeNames(layers.map((layer) => layer.diffId));
    const pinned = [...new Set([...layers.map((layer) => fileNameOf(layer.diffId)), ...places])];
    this.#pin(pinned, 1);
    try {
      progress.total(
        layers.reduce((sum, layer) => sum + layer.size, 0),
        layers.length,
      );
      progress.step(`pulling ${name}`);
      const ensured: Promise<string>[] = [];
      for (const [index, layer] of layers.entries()) {
        const place = {
          name: places[index] as string,
          lower: async () => (await Promise.all(ensured.slice(0, index))).map((lower) => this.#layers.path(lower)),
        };
        const there = this.#layers.ensure(layer, place, (bytes) => progress.bytes(layer.diffId, bytes), signal);
        ensured.push(
          there.then((found) => {
            progress.layerDone();
            return found;
          }),
        );
      }
      // All have settled: what the others got is kept for the next try, and nothing runs on behind the error.
      await Promise.allSettled(ensured);
      const names = await Promise.all(ensured);
      const { layers: visible, rootLayer } = this.#layers.visible(names);
      const record = { digest: found.digest, layers: visible, submounts: [], config: found.config };
      return await this.#register(name, rootLayer === undefined ? record : { ...record, rootLayer });
    } finally {
      this.#pin(pinned, -1);
    }
  }

  async #makeHost(name: string): Promise<ImageRecord> {
    const signature = hostSignature(this.#hostRoot);
    const staged = await this.#layers.stage();
    let layer: string | undefined;
    try {
      const { digest, submounts } = await buildHostTree(staged, this.#hostRoot);
      layer = `host-${digest.slice('sha256:'.length)}`;
      this.#pin([layer], 1);
      await this.#layers.adopt(staged, layer, { bytes: 0, entries: 0, relative: false, rootEntry: true, opaqueRoot: false });
      const record = await this.#register(name, { digest, layers: [layer], submounts, config: plainConfig });
      this.#host = { signature, record };
      return record;
    } finally {
      if (layer !== undefined) this.#pin([layer], -1);
      await rm(staged, { recursive: true, force: true });
    }
  }

  /** The image is whole: from here on it is believed. */
  async #register(name: string, record: ImageRecord): Promise<ImageRecord> {
    return this.#serial.run(async () => {
      // What is looked at for each create is so on the disk already, and the create does not wait for the disk.
      const known = this.#references.get(name);
      const same = known?.digest === record.digest && isDeepStrictEqual(this.#images.get(record.digest), record);
      if (same && !this.#isStale(known)) return record;
      await this.#images.put(record);
      const now = this.#clock.now();
      await this.#references.put({ reference: name, digest: record.digest, pulledAt: now, lastUsedAt: now });
      return record;
    });
  }

  #pin(layers: readonly string[], change: 1 | -1): void {
    for (const layer of layers) {
      const count = (this.#pinned.get(layer) ?? 0) + change;
      if (count === 0) this.#pinned.delete(layer);
      else this.#pinned.set(layer, count);
    }
  }

  /** removes images without a name or a holder, and layers without an image; never what is held or being built. */
  async #collect(): Promise<number> {
    const named = new Set(this.#references.all().map((record) => record.digest));
    for (const image of this.#images.all()) {
      if (!named.has(image.digest) && this.#holders(image.digest) === 0) await this.#images.delete(image.digest);
    }
    const needed = new Set(
      this.#images.all().flatMap(({ layers, rootLayer }) => (rootLayer === undefined ? layers : [...layers, rootLayer])),
    );
    let freedBytes = 0;
    for (const layer of this.#layers.names()) {
      if (!needed.has(layer) && !this.#pinned.has(layer)) freedBytes += await this.#layers.remove(layer);
    }
    return freedBytes;
  }
}

function cancelled(name: string, cause: unknown): DroverError {
  return new DroverError('cancelled', `waiting for the image ${name} was cancelled`, {
    hint: 'what was pulled so far is kept for the next try',
    cause,
  });
}

/** The directory itself is the layer: read-only, below the sandbox's own. */
async function directoryImage({ path }: DirectoryReference, foreign: ForeignPaths): Promise<ImageRecord> {
  if (path === '/') {
    throw new DroverError('invalid-image-reference', 'dir:/ would show the whole host to the sandbox', { hint: 'use the image host' });
  }
  const status = await foreign.status(path);
  if (status === undefined) {
    throw new DroverError('image-not-found', `there is no directory ${path} on the host`, {
      hint: 'the path is looked up on the host that runs the sandbox',
    });
  }
  if (status.kind !== 'directory')
    throw new DroverError('image-not-found', `${path} on the host is not a directory`, { hint: 'name a root file system' });
  const digest = digestOf(`dir\0${path}\0${status.device}\0${status.inode}`);
  return { digest, layers: [path], submounts: [], config: plainConfig };
}
