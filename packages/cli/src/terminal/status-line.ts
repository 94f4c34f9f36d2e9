import type { Writable } from 'node:stream';
import { statusFrameMs } from '../limits.ts';

const frames = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const clearLine = '\r\u001b[2K';

/** A redrawn line on the terminal: a text and the elapsed seconds. It does not touch keys or signals. */
export class StatusLine implements Disposable {
  readonly #output: Writable & { readonly columns?: number };
  readonly #startedAt = performance.now();
  readonly #timer: NodeJS.Timeout;
  #text = '';
  #frame = 0;

  constructor(output: Writable) {
    this.#output = output;
    this.#timer = setInterval(() => this.#draw(), statusFrameMs);
    this.#timer.unref();
  }

  show(text: string): void {
    this.#text = text;
    this.#draw();
  }

  #draw(): void {
    const seconds = Math.floor((performance.now() - this.#startedAt) / 1_000);
    const line = `${frames[this.#frame++ % frames.length]} ${this.#text} (${seconds}s)`;
    // A wrapped line could not be cleared.
    this.#output.write(`${clearLine}${line.slice(0, (this.#output.columns ?? 80) - 1)}`);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#output.write(clearLine);
  }
}
