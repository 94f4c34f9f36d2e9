import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from './errors.ts';
import { writeFileAtomic } from './files.ts';
import type { Logger } from './log.ts';

export interface FileRecordsOptions<T> {
  /** Made with mode 0700 when it is absent. Every file in it belongs to the records. */
  readonly directory: string;
  readonly key: (record: T) => string;
  /** The file name of a key, without `.json`. Default: the key. */
  readonly fileName?: (key: string) => string;
  /** A stored value as a record. It throws for any other value. */
  readonly parse: (value: unknown) => T;
  /** A record as a value of JSON. Default: as it is. */
  readonly format?: (record: T) => unknown;
  /** False: a power cut may lose or damage a record that was just written. A crash of the process never does. Default true. */
  readonly sync?: boolean;
  readonly logger: Logger;
}

/**
 * Records on disk, one JSON file each, which a crash leaves whole; and the same in memory. Writes to one key must not run concurrently.
 * A file that holds no record is logged and removed: its owner treats the record as missing.
 */
export class FileRecords<T> {
  readonly #options: FileRecordsOptions<T>;
  readonly #records = new Map<string, T>();

  constructor(options: FileRecordsOptions<T>) {
    this.#options = options;
  }

  /** Reads every record. @throws the system's error when a file cannot be read */
  async load(): Promise<readonly T[]> {
    const { directory, key, parse, logger } = this.#options;
    await mkdir(directory, { recursive: true, mode: 0o700 });
    for (const entry of await readdir(directory, { withFileTypes: true })) {
      const path = join(directory, entry.name);
      try {
        if (!entry.isFile() || !entry.name.endsWith('.json')) throw new Error('it is not the file of a record');
        const record = parse(JSON.parse(await readFile(path, 'utf8')));
        if (this.#path(key(record)) !== path) throw new Error('its name and its content differ');
        this.#records.set(key(record), record);
      } catch (error) {
        if (errnoOf(error) !== undefined) throw error;
        logger.warn({ path, err: error }, 'removing an unreadable record');
        await rm(path, { recursive: true, force: true });
      }
    }
    return this.all();
  }

  get(key: string): T | undefined {
    return this.#records.get(key);
  }

  all(): readonly T[] {
    return [...this.#records.values()];
  }

  async put(record: T): Promise<void> {
    const { key, format = (value: T): unknown => value, sync = true } = this.#options;
    await writeFileAtomic(this.#path(key(record)), JSON.stringify(format(record)), { sync });
    this.#records.set(key(record), record);
  }

  async delete(key: string): Promise<void> {
    await rm(this.#path(key), { force: true });
    this.#records.delete(key);
  }

  #path(key: string): string {
    const { directory, fileName = (name: string): string => name } = this.#options;
    return join(directory, `${fileName(key)}.json`);
  }
}
