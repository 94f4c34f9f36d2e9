import { byteString, showPath, type LeftOut } from '@drover/archive';
import { DroverError, formatBytes } from '@drover/foundation';
import type { Cli } from '../cli.ts';
import { copyLineMs, copyRedrawMs, maxLeftOutShown, progressAfterMs } from '../limits.ts';

/** Reports a copy on stderr: progress, files that are left out, and the result. Progress redraws on a terminal, and is a line per `copyLineMs` in a pipe. */
export class CopyReport {
  entries = 0;
  bytes = 0;
  readonly #cli: Cli;
  readonly #leftOut: LeftOut[] = [];
  #leftOutCount = 0;
  readonly #began = performance.now();
  #shownAt = 0;
  /** The length of the line on the terminal. */
  #shown = 0;

  constructor(cli: Cli) {
    this.#cli = cli;
  }

  /** Counts bytes that were sent or received. */
  moved(bytes: number): void {
    this.bytes += bytes;
    const { out } = this.#cli;
    if (out.json) return;
    const now = performance.now();
    const passed = now - this.#began;
    const pause = out.interactive ? copyRedrawMs : copyLineMs;
    if (passed < (out.interactive ? progressAfterMs : copyLineMs) || now - this.#shownAt < pause) return;
    this.#shownAt = now;
    const text = `${formatBytes(this.bytes)} copied, ${formatBytes(Math.round((this.bytes / passed) * 1000))}/s`;
    if (!out.interactive) {
      out.note(text);
      return;
    }
    out.stderr.write(`\r${text.padEnd(this.#shown)}`);
    this.#shown = text.length;
  }

  leftOut(item: LeftOut): void {
    this.#leftOutCount++;
    if (this.#leftOut.length === maxLeftOutShown) return;
    this.#leftOut.push(item);
    if (this.#cli.out.json) return;
    this.#clear();
    this.#cli.out.note(`${showPath(item.path)} ${item.reason}`);
  }

  /** Counts files that the other side has left out without naming them. */
  leftOutUnnamed(count: number): void {
    this.#leftOutCount += count;
  }

  /** @param source the copied path; undefined if the copy went to stdout. @throws {DroverError} copy-incomplete */
  finish(source: string | undefined): void {
    this.#clear();
    const { out } = this.#cli;
    const count = this.#leftOutCount;
    if (out.json && source !== undefined) {
      const leftOut = this.#leftOut.map(({ path, reason }) => ({ path: showPath(path), ...lossless(path), reason }));
      out.object({ entries: this.entries, bytes: this.bytes, leftOut, leftOutCount: count });
    }
    if (count === 0) return;
    throw new DroverError('copy-incomplete', `${count} ${count === 1 ? 'file was' : 'files were'} not copied, or not completely`, {
      hint: count > this.#leftOut.length ? `the first ${this.#leftOut.length} are named above` : 'they are named above',
    });
  }

  #clear(): void {
    if (this.#shown > 0) this.#cli.out.stderr.write(`\r${' '.repeat(this.#shown)}\r`);
    this.#shown = 0;
  }
}

/** The exact path, if its text is not. */
function lossless(path: string): { readonly pathBase64?: string } {
  return byteString(showPath(path)) === path ? {} : { pathBase64: Buffer.from(path, 'latin1').toString('base64') };
}
