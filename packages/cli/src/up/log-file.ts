import { fstatSync, openSync, renameSync } from 'node:fs';
import { DescriptorOutput } from '@drover/foundation/log';
import { upLogBytes } from '../limits.ts';

/** The bounded log of `up` and of its processes. It keeps the last error that a process logged. A full disk does not break it. */
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

  /** The last error line of a process, without `drover: `. */
  get lastError(): string | undefined {
    return this.#lastError;
  }

  /** The hint of that error, from the line after it. */
  get lastHint(): string | undefined {
    return this.#lastHint;
  }

  /** Called when a process is healthy: an earlier error is not the reason of a later exit. */
  forgetErrors(): void {
    this.#lastError = undefined;
    this.#lastHint = undefined;
  }

  write(line: string): void {
    this.#size += Buffer.byteLength(line);
    if (this.#size > upLogBytes) this.#rotate();
    this.#output.write(line);
    // Results, such as the line of a ready process, go to stdout.
    if (!line.includes('"stream":"stderr"')) return;
    const [, kind, quoted] = /"(?:msg|line)":"(drover| {2}hint): ((?:[^"\\]|\\.)*)"/.exec(line) ?? [];
    if (quoted === undefined) return;
    const text = JSON.parse(`"${quoted}"`) as string;
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
