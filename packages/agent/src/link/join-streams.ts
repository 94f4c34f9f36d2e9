import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Clock } from '@drover/foundation';
import { tunnelLingerMs } from '../limits.ts';

/**
 * Joins two byte streams. Each direction ends independently (half-close), and an abort of one stream aborts the other. A stream that closes after
 * its end has delivered everything: the other receives it whole and is closed after it, or is cut off if it does not read.
 * `stream.pipeline` does not fit: it destroys a duplex stream whose one direction it has seen to the end.
 */
export function joinStreams(one: Duplex, two: Duplex, clock: Pick<Clock, 'sleep'>, onError: (error: Error) => void): void {
  for (const [from, to] of [
    [one, two],
    [two, one],
  ] as const) {
    from.on('error', onError);
    const closed = (): void => {
      if (!from.readableEnded) cutOff(to);
      else closeBehind(to, clock);
    };
    // It may have closed before it was joined.
    if (from.closed) closed();
    else from.once('close', closed);
    from.pipe(to);
  }
}

/** A TCP peer must see a reset, not an end that looks complete. */
function cutOff(stream: Duplex): void {
  if (stream.destroyed) return;
  if (stream instanceof Socket) stream.resetAndDestroy();
  else stream.destroy();
}

/** Its reader receives the bytes under way, then an end; its own bytes are dropped. A reader that does not read has `tunnelLingerMs`. */
function closeBehind(stream: Duplex, clock: Pick<Clock, 'sleep'>): void {
  if (stream.closed) return;
  const closed = new AbortController();
  stream.once('close', () => closed.abort());
  clock.sleep(tunnelLingerMs, closed.signal).then(
    () => cutOff(stream),
    // It read everything.
    () => undefined,
  );
  if (stream instanceof Socket) stream.destroySoon();
  else stream.end(() => stream.destroy());
}
