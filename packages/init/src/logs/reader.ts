import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { logFile, type LogLine } from '../config.ts';
import { maxLogRecordBytes } from '../limits.ts';
import type { LogWriter } from './writer.ts';

/** A record of the kept log, decoded. */
export interface LogEntry {
  readonly stderr: boolean;
  /** Milliseconds since the epoch. */
  readonly time: number;
  readonly data: Buffer;
}

/** A line that is longer than any record can be is not one: base64, and room for the frame around it. */
const maxLineBytes = maxLogRecordBytes * 2;

/** One line of the file; undefined for what is no record (a write that a full disk cut). */
export function parseLogLine(line: string): LogEntry | undefined {
  try {
    const { s, t, d } = JSON.parse(line) as Partial<LogLine>;
    if ((s !== 1 && s !== 2) || typeof t !== 'number' || typeof d !== 'string') return undefined;
    return { stderr: s === 2, time: t, data: Buffer.from(d, 'base64') };
  } catch {
    return undefined;
  }
}

/** The records of one open file from its current position to its present end, and what is left of an unfinished line. */
class Tail {
  readonly #file: FileHandle;
  #position = 0;
  #rest = '';

  constructor(file: FileHandle) {
    this.#file = file;
  }

  async *read(): AsyncGenerator<LogEntry, void, undefined> {
    const buffer = Buffer.allocUnsafe(64 * 1024);
    for (;;) {
      const { bytesRead } = await this.#file.read(buffer, 0, buffer.length, this.#position);
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
  /** Given: goes on until it is closed. */
  readonly follow?: LogWriter;
  readonly signal: AbortSignal;
}

/** The kept log from its beginning, or its last lines, and with `follow` what comes after, across rotations. */
export async function* readLog(options: ReadLogOptions): AsyncGenerator<LogEntry, void, undefined> {
  const path = join(options.directory, logFile);
  let skip = options.tailLines > 0 ? Math.max(0, (await countLines(path)) - options.tailLines) : 0;
  const changes = options.follow === undefined ? undefined : new Changes(options.follow, options.signal);
  let current: FileHandle | undefined;
  try {
    let generation = options.follow?.generation ?? 0;
    const previous = await openIfThere(`${path}.1`);
    current = await openIfThere(path);
    for (const file of [previous, current]) {
      if (file === undefined) continue;
      const tail = new Tail(file);
      if (file !== current || changes === undefined) {
        for await (const entry of tail.read()) {
          const kept = skip > 0 ? drop(entry) : entry;
          if (kept !== undefined) yield kept;
        }
        await file.close();
        if (file === current) current = undefined;
      }
    }
    if (changes === undefined) return;
    let tail = current === undefined ? undefined : new Tail(current);
    for (;;) {
      changes.reset();
      // Both read before the file is: what is written or rotated meanwhile shows in the next round.
      const { closed, generation: now } = changes.writer;
      if (tail !== undefined) {
        for await (const entry of tail.read()) {
          const kept = skip > 0 ? drop(entry) : entry;
          if (kept !== undefined) yield kept;
        }
      }
      if (tail === undefined || now !== generation) {
        await current?.close();
        current = await openIfThere(path);
        tail = current === undefined ? undefined : new Tail(current);
        generation = now;
        if (tail !== undefined) continue;
      }
      if (closed || options.signal.aborted) return;
      await changes.next();
    }
  } finally {
    changes?.stop();
    await current?.close();
  }

  function drop(entry: LogEntry): LogEntry | undefined {
    for (let at = 0; ; at++) {
      at = entry.data.indexOf(10, at);
      if (at < 0) return undefined;
      skip--;
      if (skip === 0) return at + 1 < entry.data.length ? { ...entry, data: entry.data.subarray(at + 1) } : undefined;
    }
  }
}

/** Lines of output in both files; an unfinished last one counts. */
async function countLines(path: string): Promise<number> {
  let lines = 0;
  let unfinished = false;
  for (const name of [`${path}.1`, path]) {
    const file = await openIfThere(name);
    if (file === undefined) continue;
    try {
      for await (const { data } of new Tail(file).read()) {
        for (let at = data.indexOf(10); at >= 0; at = data.indexOf(10, at + 1)) lines++;
        unfinished = data.at(-1) !== 10;
      }
    } finally {
      await file.close();
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
