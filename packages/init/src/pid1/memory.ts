import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
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
    const collect = collector();
    // Each round ages compiled functions that were not called since the last; old ones are flushed.
    for (let round = 0; round < 6; round++) collect({ type: 'major', execution: 'sync', flavor: 'last-resort' });
  }
}

let gc: ((options: object) => void) | undefined;

/** V8's gc() without --expose-gc on the command line, which would cost every start 20 ms (see initNodeFlags). */
function collector(): (options: object) => void {
  if (gc === undefined) {
    setFlagsFromString('--expose-gc');
    gc = runInNewContext('gc') as (options: object) => void;
  }
  return gc;
}
