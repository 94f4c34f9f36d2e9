import { DroverError } from '@drover/foundation';
import type { Cli } from '../../cli.ts';
import { reconnectNoteMs } from '../../limits.ts';

/** Says what a followed stream waits for: once, and again after a while, not at every try. */
export function sayBroken(cli: Cli): (error: Error) => void {
  let said = Number.NEGATIVE_INFINITY;
  return (error) => {
    const now = performance.now();
    if (now - said < reconnectNoteMs) return;
    said = now;
    cli.out.note(`${DroverError.from(error).message}; connecting again`);
  };
}
