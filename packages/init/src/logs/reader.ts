import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { logFile, type LogLine } from '../config.ts';
import { maxLogFileReadBytes, maxLogRecordBytes } from '../limits.ts';
import type { LogWriter } from './writer.ts';

/** A record of the kept log, decoded; or, without data, a gap before the next one. */
export interface LogEntry {
  readonly stderr: boolean;
  /** Milliseconds since the epoch. */
  readonly time: number;
  readonly data: Buffer;
  /** Bytes of output over both streams before this record, since the start of the sandbox that it is of; -1: unknown. */
  readonly offset: number;
  /** More than 0: so many bytes of output before what follows are no longer kept. */
  readonly droppedBytes: number;
}

/** A line that is longer than any record can be is not one: base64, and room for the frame around it. */
const maxLineBytes = maxLogRecordBytes * 2;
/** Rotations that may come between opening one file and the other. */
const maxOpenTries = 10;

/** One line of the file; undefined for what is no record (a write that a full disk cut). */
export function parseLogLine(line: string): LogEntry | undefined {
  try {
    const { s, t, d, o } = JSON.parse(line) as Partial<LogLine>;
    if ((s !== 1 && s !== 2) || !isTime(t) || typeof d !== 'string') return undefined;
    const offset = o !== undefined && Number.isSafeInteger(o) ? o : -1;
    return { stderr: s === 2, time: t, data: Buffer.from(d, 'base64'), offset, droppedBytes: 0 };
  } catch {
    return undefined;
  }
}

/** The workload can write anything into the file; a Timestamp has no room for more (timestamp.proto: years 1 to 9999). */
function isTime(t: unknown): t is number {
  return Number.isSafeInteger(t) && (t as number) >= 0 && (t as number) <= Date.UTC(9999, 11, 31);
}

/** The records of one open file from its current position to its present end, and what is left of an unfinished line. */
class Tail {
  readonly #file: FileHandle;
  #position: number;
  #rest = '';

  constructor(file: FileHandle, from: number) {
    this.#file = file;
    this.#position = from;
  }

  /** @param end the last byte is before this position */
  async *read(end = Number.POSITIVE_INFINITY): AsyncGenerator<LogEntry, void, undefined> {
    const buffer = Buffer.allocUnsafe(64 * 1024);
    for (;;) {
      const { bytesRead } = await this.#file.read(buffer, 0, Math.min(buffer.length, end - this.#position), this.#position);
      if (bytesRead === 0) return;
      this.#position += bytesRead;
      const lines = (this.#rest + buffer.toString('latin1', 0, bytesRead)).split('\n');
      this.#rest = lines.pop() ?? '';
      if (this.#rest.length > maxLineBytes) this.#rest = '';
      for (const line of lines) {
        const entry = parseLogLine(line);
        if (entry !== undefined) yield entry;
      }
    }
  }
}

export interface ReadLogOptions {
  readonly directory: string;
  /** 0: all that is kept. */
  readonly tailLines: number;
  /** Records of this time or later only, milliseconds since the epoch; 0: all that is kept. */
  readonly sinceMs?: number;
  /** Given: goes on until it is closed. */
  readonly follow?: LogWriter;
  /** The writer of this process; its rotations are taken into account. Absent: nothing rotates the files. */
  readonly writer?: LogWriter;
  readonly signal: AbortSignal;
}

/**
 * The kept log from its beginning, or its last lines, and with `follow` what comes after, across rotations. Where output is missing, since the
 * log is bounded or the disk refused it, an entry says how much.
 */
export async function* readLog(options: ReadLogOptions): AsyncGenerator<LogEntry, void, undefined> {
  const { follow, sinceMs = 0, tailLines } = options;
  const writer = follow ?? options.writer;
  const path = join(options.directory, logFile);
  const changes = follow === undefined ? undefined : new Changes(follow, options.signal);
  const { files, generation: opened } = await openLog(path, writer);
  let generation = opened;
  let current: FileHandle | undefined;
  try {
    const lines = tailLines > 0 ? await countLines(files, sinceMs) : 0;
    const filter = new Filter(sinceMs, Math.max(0, lines - tailLines));
    let tail: Tail | undefined;
    for (const file of files) {
      tail = new Tail(file.handle, file.from);
      for await (const entry of tail.read(file.end)) yield* filter.take(entry);
    }
    if (changes === undefined) return;
    current = files.find(({ isCurrent }) => isCurrent)?.handle;
    if (current === undefined) tail = undefined;
    for (;;) {
      changes.reset();
      // Both read before the file is: what is written or rotated meanwhile shows in the next round.
      const { closed, generation: now } = changes.writer;
      if (tail !== undefined) for await (const entry of tail.read()) yield* filter.take(entry);
      if (tail === undefined || now !== generation) {
        if (!files.some(({ handle }) => handle === current)) await current?.close();
        current = await openIfThere(path);
        tail = current === undefined ? undefined : new Tail(current, 0);
        generation = now;
        if (tail !== undefined) continue;
      }
      if (closed || options.signal.aborted) return;
      await changes.next();
    }
  } finally {
    changes?.stop();
    if (!files.some(({ handle }) => handle === current)) await current?.close();
    for (const { handle } of files) await handle.close();
  }
}

/** What of the records a reader gets, and where output is missing between them. */
class Filter {
  readonly #sinceMs: number;
  #skipLines: number;
  /** Where the next record begins when none is missing. */
  #expected = 0;
  /** The next record is the first behind the lines that were skipped: what is missing before it is not of interest. */
  #behindSkipped = false;

  constructor(sinceMs: number, skipLines: number) {
    this.#sinceMs = sinceMs;
    this.#skipLines = skipLines;
  }

  *take(entry: LogEntry): Generator<LogEntry, void, undefined> {
    // Another start of the sandbox counts from 0.
    const droppedBytes = entry.offset < this.#expected ? Math.max(0, entry.offset) : entry.offset - this.#expected;
    this.#expected = Math.max(0, entry.offset) + entry.data.length;
    if (entry.time < this.#sinceMs) return;
    if (this.#skipLines > 0) {
      const rest = this.#skip(entry.data);
      this.#behindSkipped = this.#skipLines === 0 && rest === 0;
      if (rest > 0) yield { ...entry, data: entry.data.subarray(rest), offset: entry.offset + rest };
      return;
    }
    if (droppedBytes > 0 && !this.#behindSkipped)
      yield { ...entry, data: Buffer.alloc(0), offset: entry.offset - droppedBytes, droppedBytes };
    this.#behindSkipped = false;
    yield entry;
  }

  /** Where the first line that is wanted begins in the record; 0 when it does not, as 0 lines are skipped then. */
  #skip(data: Buffer): number {
    for (let at = data.indexOf(10); at >= 0; at = data.indexOf(10, at + 1)) {
      this.#skipLines--;
      if (this.#skipLines === 0) return at + 1 < data.length ? at + 1 : 0;
    }
    return 0;
  }
}

interface OpenLogFile {
  readonly handle: FileHandle;
  readonly from: number;
  readonly end: number;
  readonly isCurrent: boolean;
}

/** Both files as they are at one moment, the older one first. */
async function openLog(
  path: string,
  writer: LogWriter | undefined,
): Promise<{ readonly files: readonly OpenLogFile[]; readonly generation: number }> {
  for (let tries = 1; ; tries++) {
    const generation = writer?.generation ?? 0;
    const files: OpenLogFile[] = [];
    for (const [name, isCurrent] of [
      [`${path}.1`, false],
      [path, true],
    ] as const) {
      const handle = await openIfThere(name);
      if (handle === undefined) continue;
      const { size } = await handle.stat();
      files.push({ handle, from: Math.max(0, size - maxLogFileReadBytes), end: size, isCurrent });
    }
    // Rotated in between, a file is missing or there twice.
    if ((writer?.generation ?? 0) === generation || tries === maxOpenTries) return { files, generation };
    for (const { handle } of files) await handle.close();
  }
}

/** Lines of output in both files; an unfinished last one counts. */
async function countLines(files: readonly OpenLogFile[], sinceMs: number): Promise<number> {
  let lines = 0;
  let unfinished = false;
  for (const { handle, from, end } of files) {
    for await (const { data, time } of new Tail(handle, from).read(end)) {
      if (time < sinceMs) continue;
      for (let at = data.indexOf(10); at >= 0; at = data.indexOf(10, at + 1)) lines++;
      unfinished = data.at(-1) !== 10;
    }
  }
  return lines + (unfinished ? 1 : 0);
}

/** As in writer.ts: no link, no wait for whoever writes to a pipe, and nothing that is no file. */
async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    if ((await file.stat()).isFile()) return file;
    await file.close();
  } catch {
    // Nothing was logged yet, or nothing was rotated.
  }
  return undefined;
}

/** Wakes one reader when the writer has written. */
class Changes {
  readonly writer: LogWriter;
  readonly #off: () => void;
  readonly #signal: AbortSignal;
  #changed = false;
  #wake: (() => void) | undefined;
  readonly #abort = (): void => this.#notify();

  constructor(writer: LogWriter, signal: AbortSignal) {
    this.writer = writer;
    this.#signal = signal;
    this.#off = writer.onChange(() => this.#notify());
    signal.addEventListener('abort', this.#abort, { once: true });
  }

  reset(): void {
    this.#changed = false;
  }

  async next(): Promise<void> {
    if (this.#changed || this.#signal.aborted) return;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }

  stop(): void {
    this.#off();
    this.#signal.removeEventListener('abort', this.#abort);
  }

  #notify(): void {
    this.#changed = true;
    this.#wake?.();
    this.#wake = undefined;
  }
}
