import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { trimMemory } from '@drover/linux';
import { idleTrimMs, trimIntervalMs } from '../limits.ts';

/**
 * Gives memory back when init falls idle: start-up and TLS leave garbage and compiled code that V8 would keep for as long as nothing
 * happens, and nothing is what happens in most sandboxes.
 */
export class IdleTrim {
  #timer: NodeJS.Timeout | undefined;
  #last = 0;

  /** Something happened: idleness is counted anew. */
  touch(): void {
    const wait = Math.max(idleTrimMs, this.#last + trimIntervalMs - Date.now());
    if (this.#timer === undefined) this.#timer = setTimeout(() => this.#trim(), wait);
    else if (this.#timer.hasRef()) this.#timer.refresh();
    this.#timer.unref();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  #trim(): void {
    this.#timer = undefined;
    this.#last = Date.now();
    collect();
    trimMemory();
  }
}

/**
 * V8's gc() without --expose-gc on the command line, which would cost every start 20 ms (see initNodeFlags), and with every function's
 * bytecode given up that is not hot; by itself V8 waits for six collections in which it was not used. Both flags go away again: as long as
 * they stand, V8 takes no compiled code of what is loaded later. The function does not stay either: it holds a whole context.
 */
function collect(): void {
  setFlagsFromString('--expose-gc');
  setFlagsFromString('--stress-flush-code');
  const gc = runInNewContext('gc') as (options: object) => void;
  setFlagsFromString('--no-expose-gc');
  gc({ type: 'major', execution: 'sync', flavor: 'last-resort' });
  setFlagsFromString('--no-stress-flush-code');
}
