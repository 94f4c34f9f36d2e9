import type { Readable } from 'node:stream';
import { limits } from './limits.ts';

/**
 * Writes a process's output to the log, a line at a time, each bounded in length and all in number (G-11).
 * Reading never stops: a process that floods its output is not held up, its lines are counted and left out.
 */
export function logLines(
  stream: Readable,
  write: (line: string) => void,
  onDropped: (lines: number) => void,
  now: () => number = Date.now,
): void {
  let pending = '';
  let skipping = false;
  let second = -1;
  let written = 0;
  let dropped = 0;
  const emit = (line: string): void => {
    const current = Math.floor(now() / 1000);
    if (current !== second) {
      second = current;
      written = 0;
      report();
    }
    if (written >= limits.linesPerSecond) {
      dropped++;
      return;
    }
    written++;
    write(line);
  };
  const report = (): void => {
    if (dropped > 0) onDropped(dropped);
    dropped = 0;
  };
  stream.setEncoding('utf8');
  stream.on('data', (text: string) => {
    let start = 0;
    for (;;) {
      const newline = text.indexOf('\n', start);
      const piece = text.slice(start, newline === -1 ? undefined : newline);
      if (!skipping) pending += piece.slice(0, limits.lineBytes + 1 - pending.length);
      if (pending.length > limits.lineBytes && !skipping) {
        emit(`${pending.slice(0, limits.lineBytes)}…`);
        pending = '';
        skipping = true;
      }
      if (newline === -1) return;
      if (!skipping) emit(pending.replace(/\r$/, ''));
      pending = '';
      skipping = false;
      start = newline + 1;
    }
  });
  stream.on('close', () => {
    if (pending !== '') emit(pending);
    report();
  });
  // A pipe that breaks ends like one that closes.
  stream.on('error', () => undefined);
}
