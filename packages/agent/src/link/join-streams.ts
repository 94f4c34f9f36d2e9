import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Clock } from '@drover/foundation';
import { tunnelFarewellMs } from '../limits.ts';

/**
 * Joins two byte streams: each direction ends by itself (half-close), and an end that breaks off breaks the other one off. One that has
 * said its end and then closes has said all: the other gets it whole, and is closed behind it; one that does not take it is cut off.
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
    // One that broke before it was joined says nothing more.
    if (from.closed) closed();
    else from.once('close', closed);
    from.pipe(to);
  }
}

/** A TCP peer is to see a reset, not an end that looks complete. */
function cutOff(stream: Duplex): void {
  if (stream.destroyed) return;
  if (stream instanceof Socket) stream.resetAndDestroy();
  else stream.destroy();
}

/** Its reader gets what is on the way, then an end; what it still sends goes nowhere. A reader that takes none of it has `tunnelFarewellMs`. */
function closeBehind(stream: Duplex, clock: Pick<Clock, 'sleep'>): void {
  if (stream.closed) return;
  const closed = new AbortController();
  stream.once('close', () => closed.abort());
  clock.sleep(tunnelFarewellMs, closed.signal).then(
    () => cutOff(stream),
    // It took all.
    () => undefined,
  );
  if (stream instanceof Socket) stream.destroySoon();
  else stream.end(() => stream.destroy());
}
