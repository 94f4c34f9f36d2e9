import { rm } from 'node:fs/promises';

import { DroverError, type Clock, type Logger } from '@drover/foundation';
import type { ArchiveReference, DirectoryReference, ImageReference, RegistryReference } from '@drover/spec';
import type { ForeignPaths } from '../foreign/index.ts';
import { openArchive } from './archives/archive-image.ts';
import { digestOf, fileNameOf } from './digest.ts';
import type { FoundImage } from './found-image.ts';
import { buildHostTree, hostSignature } from './host/host-tree.ts';
import type { ImageConfig } from './images.ts';
import type { BlobStore } from './layers/blob-store.ts';
import { placeNames, type LayerStore } from './layers/layer-store.ts';
import type { Platform } from './manifest.ts';
import type { ProgressReport } from './progress.ts';
import type { ImageRecord } from './records.ts';
import type { RegistryConfig } from './registry/registry-image.ts';

export interface ImageBuilderOptions {
  /** For archives that are compressed as a whole. */
  readonly scratch: string;
  readonly platform: Platform;
  readonly config: RegistryConfig;
  /** The root of the image `host`; another in tests. */
  readonly hostRoot: string;
  readonly blobs: BlobStore;
  readonly layers: LayerStore;
  readonly foreign: ForeignPaths;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Records an image that is complete. Its layers stay pinned until it has resolved. */
  readonly register: (name: string, record: ImageRecord) => Promise<ImageRecord>;
}

const defaultPath = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
/** `host` and `dir:` name no command. */
const plainConfig: ImageConfig = { entrypoint: [], command: ['/bin/sh'], env: [defaultPath], workdir: '/', user: '', stopSignal: '' };

/** Makes images of references: finds them, fetches and unpacks their layers, registers them. */
export class ImageBuilder {
  readonly #options: ImageBuilderOptions;
  /** Layers that builds under way rely on, and how many do. */
  readonly #pinned = new Map<string, number>();
  #host: { readonly signature: string; readonly record: ImageRecord } | undefined;

  constructor(options: ImageBuilderOptions) {
    this.#options = options;
  }

  /** Whether a build under way relies on the layer. */
  isPinned(layer: string): boolean {
    return this.#pinned.has(layer);
  }

  /** The image `host` if it was built from the host's present state. */
  get host(): ImageRecord | undefined {
    return this.#host !== undefined && hostSignature(this.#options.hostRoot) === this.#host.signature ? this.#host.record : undefined;
  }

  /** @param insecure see EnsureOptions */
  async build(
    reference: ImageReference,
    name: string,
    insecure: boolean,
    progress: ProgressReport,
    signal: AbortSignal,
  ): Promise<ImageRecord> {
    const { foreign, register } = this.#options;
    if (reference.kind === 'host') return await this.#buildHost(name);
    if (reference.kind === 'dir') return await register(name, await directoryImage(reference, foreign));
    if (reference.kind === 'registry') return await this.#buildFromRegistry(reference, name, insecure, progress, signal);
    return await this.#buildFromArchive(reference, name, progress, signal);
  }

  async #buildFromRegistry(
    reference: RegistryReference,
    name: string,
    insecure: boolean,
    progress: ProgressReport,
    signal: AbortSignal,
  ): Promise<ImageRecord> {
    // Loaded here, with the HTTP client: the start of an agent does not wait for it.
    const { RegistryImage } = await import('./registry/registry-image.ts');
    await using source = new RegistryImage({ ...this.#options, reference, insecure });
    return await this.#fill(name, await source.find(signal), progress, signal);
  }

  async #buildFromArchive(reference: ArchiveReference, name: string, progress: ProgressReport, signal: AbortSignal): Promise<ImageRecord> {
    const { platform, scratch, foreign } = this.#options;
    const build = async (): Promise<ImageRecord> => {
      const { image, files } = await openArchive({ reference, platform, scratch }, signal);
      await using _files = files;
      return await this.#fill(name, image, progress, signal);
    };
    return await foreign.inPool('archive', reference.path, build, signal);
  }

  async #buildHost(name: string): Promise<ImageRecord> {
    const { layers, hostRoot, register } = this.#options;
    const signature = hostSignature(hostRoot);
    const staged = await layers.stage();
    let layer: string | undefined;
    try {
      const { digest, submounts } = await buildHostTree(staged, hostRoot);
      layer = `host-${digest.slice('sha256:'.length)}`;
      this.#pin([layer], 1);
      await layers.adopt(staged, layer, { bytes: 0, entries: 0, relative: false, rootEntry: true, opaqueRoot: false });
      const record = await register(name, { digest, layers: [layer], submounts, config: plainConfig });
      this.#host = { signature, record };
      return record;
    } finally {
      if (layer !== undefined) this.#pin([layer], -1);
      await rm(staged, { recursive: true, force: true });
    }
  }

  async #fill(name: string, found: FoundImage, progress: ProgressReport, signal: AbortSignal): Promise<ImageRecord> {
    const store = this.#options.layers;
    // overlayfs takes a directory once. Of a layer that an image lists twice the uppermost counts: it covers all below it.
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
        const lower = async () => (await Promise.all(ensured.slice(0, index))).map((each) => store.path(each));
        const place = { name: places[index] as string, lower };
        const ensuring = store.ensure(layer, place, (bytes) => progress.bytes(layer.diffId, bytes), signal);
        ensured.push(
          ensuring.then((layerName) => {
            progress.layerDone();
            return layerName;
          }),
        );
      }
      // After a failure the others settle too: what they fetched is retained for the next try, and nothing continues behind the error.
      await Promise.allSettled(ensured);
      const { layers: visible, rootLayer } = store.visible(await Promise.all(ensured));
      const record = { digest: found.digest, layers: visible, submounts: [], config: found.config };
      return await this.#options.register(name, rootLayer === undefined ? record : { ...record, rootLayer });
    } finally {
      this.#pin(pinned, -1);
    }
  }

  #pin(layers: readonly string[], change: 1 | -1): void {
    for (const layer of layers) {
      const count = (this.#pinned.get(layer) ?? 0) + change;
      if (count === 0) this.#pinned.delete(layer);
      else this.#pinned.set(layer, count);
    }
  }
}

/** The directory is the layer: read-only, below the sandbox's own. */
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
  if (status.kind !== 'directory') {
    throw new DroverError('image-not-found', `${path} on the host is not a directory`, { hint: 'name a root file system' });
  }
  const digest = digestOf(`dir\0${path}\0${status.device}\0${status.inode}`);
  return { digest, layers: [path], submounts: [], config: plainConfig };
}
