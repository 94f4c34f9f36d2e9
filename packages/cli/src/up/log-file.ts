import { closeSync, fstatSync, openSync, renameSync, writeSync } from 'node:fs';
import { upLogBytes } from '../limits.ts';

/** The log of `up` and of its processes, bounded; it remembers what a process last said about why it ended. */
export class LogFile {
  readonly path: string;
  #fd: number;
  #size: number;
  #lastError: string | undefined;
  #lastHint: string | undefined;

  constructor(path: string) {
    this.path = path;
    this.#fd = openSync(path, 'a', 0o600);
    this.#size = fstatSync(this.#fd).size;
  }

  /** The last line of a process that was an error for people, without `drover: `. */
  get lastError(): string | undefined {
    return this.#lastError;
  }

  /** What that line's hint said to do; it comes in a line of its own. */
  get lastHint(): string | undefined {
    return this.#lastHint;
  }

  write(line: string): void {
    this.#size += Buffer.byteLength(line);
    if (this.#size > upLogBytes) this.#rotate();
    writeSync(this.#fd, line);
    const [, kind, said] = /"(?:msg|line)":"(drover| {2}hint): ((?:[^"\\]|\\.)*)"/.exec(line) ?? [];
    if (said === undefined) return;
    const text = JSON.parse(`"${said}"`) as string;
    if (kind === 'drover') [this.#lastError, this.#lastHint] = [text, undefined];
    else this.#lastHint = text;
  }

  #rotate(): void {
    closeSync(this.#fd);
    renameSync(this.path, `${this.path}.1`);
    this.#fd = openSync(this.path, 'a', 0o600);
    this.#size = 0;
  }
}
