import { spawnSync } from 'node:child_process';
import type { ReadStream, WriteStream } from 'node:tty';
import type { TerminalSize } from '@drover/sdk';

/** Undoes what a program may have left on: alternate screen, hidden cursor, bracketed paste, mouse reports, colours. */
const sane = '\u001b[?1049l\u001b[?25h\u001b[?2004l\u001b[?1000l\u001b[?1002l\u001b[?1003l\u001b[?1006l\u001b[0m';

let rawTerminals = 0;

/** What ends a line of ours on the caller's terminal: a raw one goes back to the first column only when it is told to. */
export function lineEnd(): '\n' | '\r\n' {
  return rawTerminals > 0 ? '\r\n' : '\n';
}

/** The caller's terminal in raw mode, given back whatever happens (only SIGKILL cannot be seen). */
export class RawTerminal implements Disposable {
  readonly #input: ReadStream;
  readonly #output: WriteStream;
  #raw = false;
  readonly #restore = (): void => this[Symbol.dispose]();

  constructor(input: ReadStream, output: WriteStream) {
    this.#input = input;
    this.#output = output;
  }

  /** Every key goes to the reader as it is, Ctrl-C too. */
  enter(): void {
    if (this.#raw) return;
    this.#raw = true;
    // Runs for process.exit and for uncaught errors; the signals are the caller's, who then exits.
    process.on('exit', this.#restore);
    this.#input.setRawMode(true);
    // libuv's raw mode leaves a carriage return before each line feed, which a full-screen program does not want. Without stty(1) it stays.
    spawnSync('stty', ['-opost'], { stdio: ['inherit', 'ignore', 'ignore'] });
    rawTerminals++;
  }

  size(): TerminalSize {
    return { rows: this.#output.rows || 24, columns: this.#output.columns || 80 };
  }

  /** Calls back at each change of the window; gives what ends that. */
  onResize(listener: (size: TerminalSize) => void): () => void {
    const changed = (): void => listener(this.size());
    this.#output.on('resize', changed);
    return () => this.#output.off('resize', changed);
  }

  /** For a program that was left in the middle of its screen. */
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
