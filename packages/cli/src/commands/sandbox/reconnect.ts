import type { Cli } from '../../cli.ts';
import { reconnectNoteMs } from '../../limits.ts';

/** Says that the connection is being made again: once, and again after a while, not at every try. */
export function sayBroken(cli: Cli): () => void {
  let said = Number.NEGATIVE_INFINITY;
  return () => {
    const now = performance.now();
    if (now - said < reconnectNoteMs) return;
    said = now;
    cli.out.note('the connection broke; connecting again');
  };
}
