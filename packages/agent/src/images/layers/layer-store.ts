import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import pLimit from 'p-limit';
import { abortable, hasCode, type FileRecords, type Logger } from '@drover/foundation';
import { bootId } from '@drover/linux';
import { maxDownloads, maxUnpacks } from '../../limits.ts';
import { syncDirectory } from './blob-store.ts';
import { digestOf, fileNameOf } from '../digest.ts';
import { layerRecords, type LayerRecord } from '../records.ts';
import type { FoundLayer } from '../found-image.ts';
import { syncInThread, unpackInThread } from '../unpack/unpack-workers.ts';
import type { UnpackedLayer } from '../unpack/unpack.ts';

interface LayerTask {
  readonly done: Promise<void>;
  readonly listeners: Set<(doneBytes: number) => void>;
}

/** The place of a layer in an image. */
export interface LayerPlace {
  /** The name of the layer over exactly these lower ones (`placeNames`). The lowest has the layer's own name. */
  readonly name: string;
  /** Resolves with the unpacked layers below it, lowest first. */
  readonly lower: () => Promise<readonly string[]>;
}

/**
 * Names layers by what lies below them: the ChainID of image-spec config.md, "Layer ChainID".
 * @param diffIds lowest first
 */
export function placeNames(diffIds: readonly string[]): readonly string[] {
  let chain = '';
  return diffIds.map((diffId, index) => {
    chain = index === 0 ? diffId : digestOf(`${chain} ${diffId}`);
    return index === 0 ? fileNameOf(diffId) : `${placePrefix}${fileNameOf(chain)}`;
  });
}

const placePrefix = 'chain-';
const isPlaceName = (name: string): boolean => name.startsWith(placePrefix);

export type AdoptedLayer = Omit<UnpackedLayer, 'diffId'>;

/**
 * Unpacked layers, `layers/<algorithm>-<hex of the diff id>/`, shared by all images. A directory counts only with its
 * record, which is written after the directory was renamed into place.
 */
export class LayerStore {
  readonly #directory: string;
  readonly #staging: string;
  readonly #records: FileRecords<LayerRecord>;
  readonly #logger: Logger;
  /** The agent's lifetime. */
  readonly #lifetime: AbortSignal;
  readonly #tasks = new Map<string, LayerTask>();
  readonly #downloads = pLimit(maxDownloads);
  readonly #unpacks = pLimit(maxUnpacks);
  #boot = '';
  #syncing: Promise<void> | undefined;

  constructor(options: { readonly directory: string; readonly logger: Logger; readonly signal: AbortSignal }) {
    this.#directory = join(options.directory, 'layers');
    this.#staging = join(options.directory, 'staging');
    this.#records = layerRecords(join(options.directory, 'layer-records'), options.logger);
    this.#logger = options.logger;
    this.#lifetime = options.signal;
  }

  /** Removes the remains of a crash: staging directories, layers without a record, and layers that a power cut may have damaged. */
  async start(): Promise<void> {
    this.#boot = bootId();
    await rm(this.#staging, { recursive: true, force: true });
    await mkdir(this.#staging, { recursive: true, mode: 0o700 });
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    await this.#records.load();
    for (const record of this.#records.all()) {
      if (!existsSync(this.path(record.name)) || (!record.durable && record.boot !== this.#boot)) await this.#records.delete(record.name);
    }
    for (const name of await readdir(this.#directory)) {
      if (this.#records.get(name) === undefined) await rm(join(this.#directory, name), { recursive: true, force: true });
    }
    if (this.#records.all().some((record) => !record.durable)) this.#makeDurable();
  }

  path(name: string): string {
    return name.startsWith('/') ? name : join(this.#directory, name);
  }

  /** A directory of the host is not checked: it may be on a file system that hangs. */
  has(name: string): boolean {
    return name.startsWith('/') || (this.#records.get(name) !== undefined && existsSync(this.path(name)));
  }

  bytes(name: string): number {
    return this.#records.get(name)?.bytes ?? 0;
  }

  /** The lower layers that an image's uppermost ones leave visible, and the layer that decides its root's owner and mode. Lowest first. */
  visible(names: readonly string[]): { readonly layers: readonly string[]; readonly rootLayer: string | undefined } {
    const hiding = names.findLastIndex((name) => this.#records.get(name)?.opaqueRoot === true);
    return {
      layers: names.slice(Math.max(0, hiding)),
      rootLayer: names.findLast((name) => this.#records.get(name)?.rootEntry !== false),
    };
  }

  names(): readonly string[] {
    return this.#records.all().map((record) => record.name);
  }

  /** @returns freed bytes */
  async remove(name: string): Promise<number> {
    const bytes = this.bytes(name);
    // Without its record it does not count, even half removed.
    await this.#records.delete(name);
    const going = join(this.#staging, `${name}.${randomBytes(6).toString('hex')}`);
    await rename(this.path(name), going);
    await rm(going, { recursive: true, force: true });
    return bytes;
  }

  /** Makes an empty directory. `adopt` makes it a layer; otherwise the next start removes it. */
  async stage(): Promise<string> {
    const path = join(this.#staging, randomBytes(8).toString('hex'));
    await mkdir(path, { mode: 0o755 });
    return path;
  }

  /** Makes a staged directory a layer, unless a layer of that name exists. */
  async adopt(staged: string, name: string, unpacked: AdoptedLayer): Promise<void> {
    if (this.has(name)) {
      await rm(staged, { recursive: true, force: true });
      return;
    }
    await rm(this.path(name), { recursive: true, force: true });
    await rename(staged, this.path(name));
    await syncDirectory(this.#directory);
    const { bytes, entries, relative, rootEntry, opaqueRoot } = unpacked;
    // Under the name of a place it is used only there.
    await this.#records.put({
      name,
      bytes,
      entries,
      relative: relative && !isPlaceName(name),
      rootEntry,
      opaqueRoot,
      boot: this.#boot,
      durable: false,
    });
    this.#makeDurable();
  }

  /**
   * Downloads and unpacks a layer unless the store has it; a second caller for the same layer waits for the first. If the first fails, the
   * second tries its own source.
   * @returns its name, for `path`
   */
  async ensure(layer: FoundLayer, place: LayerPlace, onBytes: (doneBytes: number) => void, signal: AbortSignal): Promise<string> {
    const alone = fileNameOf(layer.diffId);
    // Most layers are the same over any other. A layer that is not is unpacked over the layers of this image, under the name of its place.
    let relative = false;
    for (;;) {
      signal.throwIfAborted();
      const isRight = place.name === alone || this.#records.get(alone)?.relative !== true;
      const found = [...(isRight ? [alone] : []), place.name].find((name) => this.has(name));
      if (found !== undefined) {
        onBytes(layer.size);
        return found;
      }
      relative ||= !isRight;
      const name = relative ? place.name : alone;
      const lower = name === place.name ? await abortable(place.lower(), signal) : undefined;
      const running = this.#tasks.get(name);
      if (running !== undefined) {
        running.listeners.add(onBytes);
        try {
          await abortable(running.done, signal);
        } catch (error) {
          signal.throwIfAborted();
          this.#logger.debug({ layer: name, err: error }, 'a shared layer failed for another image');
        } finally {
          running.listeners.delete(onBytes);
        }
        continue;
      }
      const listeners = new Set([onBytes]);
      const building = this.#build(layer, name, lower, (bytes) => listeners.forEach((listener) => listener(bytes)), signal);
      const done = building.then(() => undefined).finally(() => this.#tasks.delete(name));
      this.#tasks.set(name, { done, listeners });
      await done;
      relative ||= (await building) === 'needs-lower-layers';
    }
  }

  async #build(
    layer: FoundLayer,
    name: string,
    lower: readonly string[] | undefined,
    onBytes: (doneBytes: number) => void,
    signal: AbortSignal,
  ): Promise<'adopted' | 'needs-lower-layers'> {
    const file = await this.#downloads(() => layer.fetch(onBytes, signal));
    const outcome = await this.#unpacks(async () => {
      const staged = await this.stage();
      try {
        const unpacked = await unpackInThread(file, staged, layer.diffId, lower, signal);
        if (unpacked === 'needs-lower-layers') {
          await rm(staged, { recursive: true, force: true });
          return unpacked;
        }
        await this.adopt(staged, name, unpacked);
        return 'adopted';
      } catch (error) {
        await rm(staged, { recursive: true, force: true });
        // Corrupt bytes stay corrupt, and a full disk must not stay full of them.
        if (hasCode(error, 'corrupt-image', 'unsafe-archive', 'too-large', 'disk-full')) await layer.discard();
        throw error;
      }
    });
    if (outcome === 'adopted') await layer.discard();
    return outcome;
  }

  /** Writes back the file system, one call at a time: layers that were unpacked earlier survive a power cut from then on. */
  #makeDurable(): void {
    if (this.#syncing !== undefined || this.#lifetime.aborted) return;
    this.#syncing = (async () => {
      for (;;) {
        const waiting = this.#records.all().filter((record) => !record.durable);
        if (waiting.length === 0) return;
        await syncInThread(this.#directory, this.#lifetime);
        for (const record of waiting) {
          if (this.#records.get(record.name) === record) await this.#records.put({ ...record, durable: true });
        }
      }
    })()
      .catch((error: unknown) => {
        // They are unpacked again after the next boot.
        if (!this.#lifetime.aborted) this.#logger.warn({ err: error }, 'unpacked layers could not be written back');
      })
      .finally(() => {
        this.#syncing = undefined;
      });
  }

  /** Resolves when the work in the background has ended. */
  async idle(): Promise<void> {
    await this.#syncing;
  }
}
