import type { Client } from '@connectrpc/connect';
import { Backoff, DroverError } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';
import { fromApiError, Reach } from './errors.ts';
import { retryBaseMs, retryCapMs, watchReconnectMs } from './limits.ts';

export interface WatchOptions {
  /** Events after this id; absent begins now (or at the first kept one, with `fromStart`). */
  readonly afterId?: bigint;
  readonly fromStart?: boolean;
  /** Default true; false ends after what is stored. */
  readonly follow?: boolean;
  /** sandbox, host, image, session, …; absent is all. */
  readonly kinds?: readonly string[];
  /** A sandbox or host id. */
  readonly subject?: string;
  /** Told once, when the watch stands: every event from then on will be handed out, whatever happens to the connection. */
  readonly onBegan?: () => void;
  /** Told each time the connection broke and is being made again. */
  readonly onReconnect?: (error: Error) => void;
  readonly signal?: AbortSignal;
}

export interface EventsApi {
  /** In order; after a broken connection it goes on behind the last event that was handed out, or where it began (I-35). */
  watch(options?: WatchOptions): AsyncIterable<api.Event>;
}

export function eventsApi(client: Client<typeof api.EventService>, calls: Calls): EventsApi {
  return {
    async *watch(options = {}) {
      const { signal, follow = true, kinds = [], subject = '', onBegan, onReconnect } = options;
      const backoff = new Backoff({ baseMs: retryBaseMs, capMs: retryCapMs });
      let afterId = options.afterId ?? 0n;
      let fromStart = options.fromStart ?? false;
      let brokenSince: number | undefined;
      let stands = false;
      const reach = new Reach();
      for (;;) {
        try {
          const request = { afterId, fromStart, follow, kinds: [...kinds], subject, announce: true };
          for await (const event of client.watchEvents(request, withSignal(signal))) {
            brokenSince = undefined;
            backoff.reset();
            afterId = event.id;
            // 0 asks for what comes from now on: what comes after nothing is everything.
            fromStart = afterId === 0n;
            if (event.kind !== 'watch') yield event;
            else if (!stands) {
              stands = true;
              onBegan?.();
            }
          }
          if (!follow) return;
          throw new DroverError('control-plane-unreachable', `${calls.server} ended the watch`);
        } catch (thrown) {
          const error = fromApiError(thrown, calls.server);
          if (signal?.aborted === true || !follow || !reach.mayTryAgain(error)) throw error;
          brokenSince ??= calls.clock.now();
          if (calls.clock.now() - brokenSince > watchReconnectMs) throw error;
          onReconnect?.(error);
          await calls.clock.sleep(backoff.nextMs(), signal);
        }
      }
    },
  };
}
