import { fstatSync, openSync, renameSync } from 'node:fs';
import { DescriptorOutput } from '@drover/foundation/log';
import { upLogBytes } from '../limits.ts';

/** The log of `up` and of its processes, bounded. It remembers the last error line of a process, and survives a full disk. */
export class LogFile {
  readonly path: string;
  #output: DescriptorOutput;
  #size: number;
  #lastError: string | undefined;
  #lastHint: string | undefined;

  constructor(path: string) {
    this.path = path;
    const fd = openSync(path, 'a', 0o600);
    this.#output = new DescriptorOutput(fd);
    this.#size = fstatSync(fd).size;
  }

  /** The last line of a process that was an error for people, without `drover: `. */
  get lastError(): string | undefined {
    return this.#lastError;
  }

  /** What that line's hint said to do; it comes in a line of its own. */
  get lastHint(): string | undefined {
    return this.#lastHint;
  }

  /** What was said before is not the reason for the next end. */
  forgetErrors(): void {
    this.#lastError = undefined;
    this.#lastHint = undefined;
  }

  write(line: string): void {
    this.#size += Buffer.byteLength(line);
    if (this.#size > upLogBytes) this.#rotate();
    this.#output.write(line);
    // Results, such as the line that says that it is ready, go to stdout.
    if (!line.includes('"stream":"stderr"')) return;
    const [, kind, said] = /"(?:msg|line)":"(drover| {2}hint): ((?:[^"\\]|\\.)*)"/.exec(line) ?? [];
    if (said === undefined) return;
    const text = JSON.parse(`"${said}"`) as string;
    if (kind === 'drover') [this.#lastError, this.#lastHint] = [text, undefined];
    else this.#lastHint = text;
  }

  #rotate(): void {
    this.#output.close();
    renameSync(this.path, `${this.path}.1`);
    this.#output = new DescriptorOutput(openSync(this.path, 'a', 0o600));
    this.#size = 0;
  }
}
