import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, writeFileAtomic, type Logger } from '@drover/foundation';
import { fileNameOf } from './digest.ts';
import type { ImageConfig, Submount } from './images.ts';

/** What is known of an image whose layers are all there. */
export interface ImageRecord {
  readonly digest: string;
  /** Lowest first: a name below `layers/`, or an absolute path (`dir:`). */
  readonly layers: readonly string[];
  readonly submounts: readonly Submount[];
  readonly config: ImageConfig;
  /** The layer whose entry for the root decides the root's owner and mode. Absent: the uppermost, as in records of earlier agents. */
  readonly rootLayer?: string;
}

/** What a person calls an image. */
export interface ReferenceRecord {
  readonly reference: string;
  readonly digest: string;
  /** Milliseconds since the epoch. */
  readonly pulledAt: number;
  readonly lastUsedAt: number;
}

/** Who keeps images from being removed. */
export interface HoldRecord {
  readonly holder: string;
  readonly digests: readonly string[];
}

/** Of an unpacked layer. Without it a directory is no layer. */
export interface LayerRecord {
  readonly name: string;
  readonly bytes: number;
  readonly entries: number;
  /** The boot it was unpacked in; what is not yet `durable` is not believed after another boot. */
  readonly boot: string;
  readonly durable: boolean;
  /** It was unpacked as a lowest layer, and is right as that only. Absent in records of earlier agents, as the next two. */
  readonly relative?: boolean;
  readonly rootEntry?: boolean;
  /** It hides every layer below it. */
  readonly opaqueRoot?: boolean;
}

/**
 * Small JSON files, one a record, each written whole or not at all, and the same in memory.
 * A file that cannot be read is removed: everything here can be pulled again, and a hold is renewed by its holder.
 */
export class Records<T> {
  readonly #directory: string;
  readonly #key: (record: T) => string;
  readonly #fileName: (key: string) => string;
  readonly #sync: boolean;
  readonly #records = new Map<string, T>();

  /** @param sync a power cut, too, leaves each record whole; false where its loss then does no harm */
  constructor(directory: string, key: (record: T) => string, fileName: (key: string) => string, sync = true) {
    this.#directory = directory;
    this.#sync = sync;
    this.#key = key;
    this.#fileName = fileName;
  }

  async load(logger: Logger): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    for (const file of await readdir(this.#directory)) {
      const path = join(this.#directory, file);
      try {
        if (!file.endsWith('.json')) throw new DroverError('internal', 'a temporary file of a crash');
        const record = JSON.parse(await readFile(path, 'utf8')) as T;
        if (`${this.#fileName(this.#key(record))}.json` !== file) throw new DroverError('internal', 'the name and the content differ');
        this.#records.set(this.#key(record), record);
      } catch (error) {
        if (errnoOf(error) !== undefined) throw error;
        logger.warn({ path, err: error }, 'an unreadable record of the image store is removed');
        await rm(path, { force: true });
      }
    }
  }

  get(key: string): T | undefined {
    return this.#records.get(key);
  }

  all(): readonly T[] {
    return [...this.#records.values()];
  }

  async put(record: T): Promise<void> {
    const key = this.#key(record);
    await writeFileAtomic(join(this.#directory, `${this.#fileName(key)}.json`), JSON.stringify(record), { sync: this.#sync });
    this.#records.set(key, record);
  }

  async delete(key: string): Promise<void> {
    await rm(join(this.#directory, `${this.#fileName(key)}.json`), { force: true });
    this.#records.delete(key);
  }
}

/** A name of any form as a file name. */
const hashed = (key: string): string => createHash('sha256').update(key).digest('hex');

export const imageRecords = (directory: string): Records<ImageRecord> => new Records(directory, (r) => r.digest, fileNameOf);
export const referenceRecords = (directory: string): Records<ReferenceRecord> => new Records(directory, (r) => r.reference, hashed);
/** Not synced: it is on the way of every create, and no sandbox that holds an image outlives a power cut. */
export const holdRecords = (directory: string): Records<HoldRecord> => new Records(directory, (r) => r.holder, hashed, false);
export const layerRecords = (directory: string): Records<LayerRecord> =>
  new Records(
    directory,
    (r) => r.name,
    (name) => name,
  );
