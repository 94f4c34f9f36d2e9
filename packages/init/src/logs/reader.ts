import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { Notifier } from '@drover/foundation';
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

/** A longer line is no record: base64, and room for the frame around it. */
const maxLineBytes = maxLogRecordBytes * 2;
/** Tries to open both files without a rotation in between. */
const maxOpenTries = 10;

/** One line of the file; undefined when it is no record, for instance a write that a full disk cut. */
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

/** The workload can write anything into the file; a Timestamp holds the years 1 to 9999 (timestamp.proto). */
function isTime(t: unknown): t is number {
  return Number.isSafeInteger(t) && (t as number) >= 0 && (t as number) <= Date.UTC(9999, 11, 31);
}

/** The records of one open file from the current position to its end. Keeps the beginning of an unfinished line. */
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
  /** 0: the whole log. */
  readonly tailLines: number;
  /** Only records of this time or later. Milliseconds since the epoch; 0: the whole log. */
  readonly sinceMs?: number;
  /** Follows this writer until it is closed. */
  readonly follow?: LogWriter;
  /** The writer of this process, whose rotations are taken into account. Absent: nothing rotates the files. */
  readonly writer?: LogWriter;
  readonly signal: AbortSignal;
}

/**
 * The kept log from its beginning, or its last lines, and with `follow` later output, across rotations. Where output is missing, since the log
 * is bounded or the disk refused it, an entry reports how much.
 */
export async function* readLog(options: ReadLogOptions): AsyncGenerator<LogEntry, void, undefined> {
  const { follow, sinceMs = 0, tailLines } = options;
  const writer = follow ?? options.writer;
  const path = join(options.directory, logFile);
  const changes = new Notifier();
  const unsubscribe = follow?.onChange(changes.notify);
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
    if (follow === undefined) return;
    current = files.find(({ isCurrent }) => isCurrent)?.handle;
    if (current === undefined) tail = undefined;
    for (;;) {
      // Both are read before the file: what is written or rotated meanwhile is found in the next round.
      const { closed, generation: now } = follow;
      if (tail !== undefined) for await (const entry of tail.read()) yield* filter.take(entry);
      if (tail === undefined || now !== generation) {
        if (!files.some(({ handle }) => handle === current)) await current?.close();
        current = await openIfThere(path);
        tail = current === undefined ? undefined : new Tail(current, 0);
        generation = now;
        if (tail !== undefined) continue;
      }
      if (closed || options.signal.aborted) return;
      // Rejects when the reader leaves, which ends the loop.
      await changes.wait(options.signal).catch(() => undefined);
    }
  } finally {
    unsubscribe?.();
    if (!files.some(({ handle }) => handle === current)) await current?.close();
    for (const { handle } of files) await handle.close();
  }
}

/** Selects the records for a reader, and reports where output is missing between them. */
class Filter {
  readonly #sinceMs: number;
  #skipLines: number;
  /** Where the next record begins if none is missing. */
  #expected = 0;
  /** The next record is the first after the skipped lines: missing output before it is not reported. */
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

  /** Where the first line to keep begins in the record; 0 when it does not begin in it. */
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
    // After a rotation in between, a file is missing or open twice.
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

/** As in writer.ts: follows no link, waits for no writer of a pipe, and opens regular files only. */
async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    if ((await file.stat()).isFile()) return file;
    await file.close();
  } catch {
    // No output has been logged, or no file rotated.
  }
  return undefined;
}
