import { spawnSync } from 'node:child_process';
import type { ReadStream, WriteStream } from 'node:tty';
import type { TerminalSize } from '@drover/sdk';

/** Resets modes that a program may have left on: alternate screen, hidden cursor, bracketed paste, mouse reports, colours. */
const sane = '\u001b[?1049l\u001b[?25h\u001b[?2004l\u001b[?1000l\u001b[?1002l\u001b[?1003l\u001b[?1006l\u001b[0m';

let rawTerminals = 0;

/** The line end for Drover's own lines: a raw terminal needs a carriage return as well. */
export function lineEnd(): '\n' | '\r\n' {
  return rawTerminals > 0 ? '\r\n' : '\n';
}

/** The caller's terminal in raw mode. It is restored on every exit but SIGKILL. */
export class RawTerminal implements Disposable {
  readonly #input: ReadStream;
  readonly #output: WriteStream;
  #raw = false;
  readonly #restore = (): void => this[Symbol.dispose]();

  constructor(input: ReadStream, output: WriteStream) {
    this.#input = input;
    this.#output = output;
  }

  /** Passes every key to the reader unchanged, Ctrl-C included. */
  enter(): void {
    if (this.#raw) return;
    this.#raw = true;
    // Runs on process.exit and on uncaught errors. The caller handles signals, and exits.
    process.on('exit', this.#restore);
    this.#input.setRawMode(true);
    // libuv's raw mode adds a carriage return to each line feed, which breaks full-screen programs. Without stty(1) it stays.
    spawnSync('stty', ['-opost'], { stdio: ['inherit', 'ignore', 'ignore'] });
    rawTerminals++;
  }

  size(): TerminalSize {
    return { rows: this.#output.rows || 24, columns: this.#output.columns || 80 };
  }

  /** Calls `listener` on every resize. Returns a function that stops that. */
  onResize(listener: (size: TerminalSize) => void): () => void {
    const changed = (): void => listener(this.size());
    this.#output.on('resize', changed);
    return () => this.#output.off('resize', changed);
  }

  /** Resets the modes of a program that was detached. */
  makeSane(): void {
    this.#output.write(sane);
  }

  [Symbol.dispose](): void {
    if (!this.#raw) return;
    this.#raw = false;
    process.off('exit', this.#restore);
    rawTerminals--;
    if (!this.#input.destroyed) this.#input.setRawMode(false);
  }
}
