import type { Readable } from 'node:stream';
import { limits } from './limits.ts';

export interface LineSink {
  readonly write: (line: string) => void;
  /** Called with the number of lines that were dropped, since they exceeded `linesPerSecond`. */
  readonly dropped: (lines: number) => void;
}

/**
 * Splits a process's output into lines, bounded in length and in number per second (G-11). The stream is always read: a process that
 * floods its output is not held up.
 */
export function logLines(stream: Readable, sink: LineSink, now: () => number = Date.now): void {
  const rate = new RateLimit(sink, now);
  let pending = '';
  // The rest of a line that was cut is dropped.
  let cut = false;
  const endOfLine = (): void => {
    if (!cut) rate.write(pending.replace(/\r$/, ''));
    pending = '';
    cut = false;
  };
  const append = (piece: string): void => {
    if (cut) return;
    pending += piece.slice(0, limits.lineBytes + 1 - pending.length);
    if (pending.length <= limits.lineBytes) return;
    rate.write(`${pending.slice(0, limits.lineBytes)}…`);
    cut = true;
  };
  stream.setEncoding('utf8');
  stream.on('data', (text: string) => {
    const pieces = text.split('\n');
    for (const [i, piece] of pieces.entries()) {
      append(piece);
      if (i < pieces.length - 1) endOfLine();
    }
  });
  stream.on('close', () => {
    if (pending !== '') endOfLine();
    rate.report();
  });
  // A pipe that breaks ends like one that closes.
  stream.on('error', () => undefined);
}

class RateLimit {
  readonly #sink: LineSink;
  readonly #now: () => number;
  #second = -1;
  #written = 0;
  #dropped = 0;

  constructor(sink: LineSink, now: () => number) {
    this.#sink = sink;
    this.#now = now;
  }

  write(line: string): void {
    const second = Math.floor(this.#now() / 1000);
    if (second !== this.#second) {
      this.#second = second;
      this.#written = 0;
      this.report();
    }
    if (this.#written++ < limits.linesPerSecond) this.#sink.write(line);
    else this.#dropped++;
  }

  report(): void {
    if (this.#dropped > 0) this.#sink.dropped(this.#dropped);
    this.#dropped = 0;
  }
}
