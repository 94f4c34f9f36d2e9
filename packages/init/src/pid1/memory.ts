import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { trimMemory } from '@drover/linux';
import { idleTrimMs, trimIntervalMs } from '../limits.ts';

/** Returns memory to the kernel when init becomes idle: V8 keeps the garbage and compiled code of start-up and TLS until it allocates again. */
export class IdleTrim {
  #timer: NodeJS.Timeout | undefined;
  #last = 0;

  /** Restarts the idle timer. */
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
 * Calls V8's gc() without --expose-gc on the command line, which costs every start 20 ms (see initNodeFlags). It also flushes the bytecode of
 * functions that are not hot, for which V8 otherwise waits for six collections without a use. Both flags are reset: while they are set, V8 uses
 * no cached code of modules that are loaded later. The function is not kept, because it holds a whole context.
 */
function collect(): void {
  setFlagsFromString('--expose-gc');
  setFlagsFromString('--stress-flush-code');
  const gc = runInNewContext('gc') as (options: object) => void;
  setFlagsFromString('--no-expose-gc');
  gc({ type: 'major', execution: 'sync', flavor: 'last-resort' });
  setFlagsFromString('--no-stress-flush-code');
}
