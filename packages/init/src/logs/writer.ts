import { close, closeSync, constants, fstatSync, openSync, renameSync, write } from 'node:fs';
import { join } from 'node:path';
import { logFile, maxLogBytes, type LogLine } from '../config.ts';
import { maxLogPendingBytes, maxLogRecordBytes } from '../limits.ts';
import type { OutputSink } from '../processes/index.ts';

/** The workload can write into the directory too: no link is followed, and a pipe without a reader blocks nothing. */
const appendOnly = constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW | constants.O_NONBLOCK;

export interface LogOptions {
  readonly directory: string;
  /** Bytes of the file before it is rotated to `log.1`. */
  readonly maxBytes?: number;
}

/**
 * The kept log of the main process: JSON lines, one record per chunk of output, in two files at most. Writes go to the disk in order and
 * asynchronously; while too many bytes wait for it, the process's output is not read. A disk that refuses a write (full, read-only) loses
 * records, which are counted, and does not affect the workload.
 */
export class LogWriter implements OutputSink {
  readonly #path: string;
  readonly #maxBytes: number;
  #fd: number | undefined;
  #size = 0;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #writing = false;
  #drain: (() => void)[] = [];
  readonly #listeners = new Set<() => void>();
  #closed = false;
  #lostBytes = 0;
  #generation = 0;
  /** Bytes of output so far. Readers find gaps by it. */
  #offset = 0;

  constructor(options: LogOptions) {
    this.#path = join(options.directory, logFile);
    this.#maxBytes = options.maxBytes ?? maxLogBytes;
  }

  /** Bytes of output that the disk refused. */
  get lostBytes(): number {
    return this.#lostBytes;
  }

  /** How often the file was rotated. */
  get generation(): number {
    return this.#generation;
  }

  get closed(): boolean {
    return this.#closed;
  }

  write(stderr: boolean, data: Buffer): boolean {
    const t = Date.now();
    for (let at = 0; at < data.length; at += maxLogRecordBytes) {
      const bytes = data.subarray(at, at + maxLogRecordBytes);
      const line: LogLine = { s: stderr ? 2 : 1, t, o: this.#offset, d: bytes.toString('base64') };
      this.#offset += bytes.length;
      const record = Buffer.from(`${JSON.stringify(line)}\n`);
      this.#pending.push(record);
      this.#pendingBytes += record.length;
    }
    this.#pump();
    return this.#pendingBytes < maxLogPendingBytes;
  }

  onDrain(callback: () => void): void {
    if (this.#pendingBytes < maxLogPendingBytes / 2) callback();
    else this.#drain.push(callback);
  }

  /** Called after records were written, and when the log ends. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Resolves when the disk has taken or refused every record. */
  async close(): Promise<void> {
    while (this.#writing) await new Promise<void>((resolve) => this.#drain.push(resolve));
    this.#closed = true;
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
    this.#notify();
  }

  #pump(): void {
    if (this.#writing || this.#pending.length === 0) return;
    this.#writing = true;
    // At most one file's worth.
    let count = 0;
    for (let bytes = 0; count < this.#pending.length; count++) {
      bytes += this.#pending[count]?.length ?? 0;
      if (bytes > this.#maxBytes && count > 0) break;
    }
    const batch = Buffer.concat(this.#pending.splice(0, count));
    const fd = this.#file(batch.length);
    if (fd === undefined) {
      this.#lost(batch);
      // In a later turn: the process must not be able to cause a busy loop.
      setImmediate(() => this.#written(batch.length));
      return;
    }
    this.#writeAll(fd, batch, 0);
  }

  #writeAll(fd: number, batch: Buffer, at: number): void {
    write(fd, batch, at, batch.length - at, null, (error, count) => {
      if (error !== null) {
        this.#lost(batch.subarray(at));
        // Ends the record that was cut; a reader skips it.
        this.#size += 1;
        write(fd, '\n', () => this.#written(batch.length));
        return;
      }
      this.#size += count;
      if (at + count < batch.length) this.#writeAll(fd, batch, at + count);
      else this.#written(batch.length);
    });
  }

  #written(bytes: number): void {
    this.#writing = false;
    this.#pendingBytes -= bytes;
    this.#notify();
    this.#pump();
    if (this.#pendingBytes >= maxLogPendingBytes / 2) return;
    const drain = this.#drain;
    this.#drain = [];
    for (const callback of drain) callback();
  }

  #notify(): void {
    for (const listener of this.#listeners) listener();
  }

  /** The file to append to; undefined when it cannot be opened. */
  #file(incoming: number): number | undefined {
    try {
      if (this.#fd !== undefined && this.#size + incoming > this.#maxBytes && this.#size > 0) {
        close(this.#fd);
        this.#fd = undefined;
        renameSync(this.#path, `${this.#path}.1`);
        this.#size = 0;
        this.#generation++;
      }
      if (this.#fd === undefined) {
        this.#fd = openSync(this.#path, appendOnly, 0o600);
        this.#size = fstatSync(this.#fd).size;
      }
      return this.#fd;
    } catch {
      // A full or broken disk: the batch is lost, and the next one tries again.
      return undefined;
    }
  }

  /** Counts output, not base64 with its frame. */
  #lost(records: Buffer): void {
    this.#lostBytes += Math.floor((records.length * 3) / 4);
  }
}
