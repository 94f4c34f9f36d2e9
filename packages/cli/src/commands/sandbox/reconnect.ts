import { DroverError } from '@drover/foundation';
import type { Cli } from '../../cli.ts';
import { reconnectNoteMs } from '../../limits.ts';

/** Returns a listener that notes why a stream reconnects, at most once per interval. */
export function noteReconnects(cli: Cli): (error: Error) => void {
  let notedAt = Number.NEGATIVE_INFINITY;
  return (error) => {
    const now = performance.now();
    if (now - notedAt < reconnectNoteMs) return;
    notedAt = now;
    cli.out.note(`${DroverError.from(error).message}; reconnecting`);
  };
}
