import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import { optionsOf, type Calls } from './calls.ts';
import { reconnecting } from './reconnecting.ts';

export interface WorldviewOptions {
  /** A sandbox id; absent: all sandboxes. */
  readonly sandbox?: string;
  readonly signal?: AbortSignal;
}

export interface WatchWorldviewOptions extends WorldviewOptions {
  /** Goes on after this event without a snapshot, as after a restart of the watching program. Absent: begins with a snapshot. */
  readonly afterId?: bigint;
  /** Called each time the connection has broken, before the next attempt. */
  readonly onReconnect?: (error: Error) => void;
}

/** The state of every requested sandbox at one moment. */
export interface WorldviewSnapshot {
  readonly kind: 'snapshot';
  /** The newest event that it includes. */
  readonly atEventId: bigint;
  readonly sandboxes: readonly api.SandboxView[];
}

/** A snapshot replaces all earlier knowledge. An event (of kind sandbox, session, identity or init) may change its subject; a repeated event changes nothing. */
export type WorldviewUpdate = WorldviewSnapshot | { readonly kind: 'event'; readonly event: api.Event };

/** The present state of sessions, identities and init plans (I-35). Everything rejects with a DroverError. */
export type WorldviewApi = ReturnType<typeof worldviewApi>;

export function worldviewApi(client: Client<typeof api.EventService>, calls: Calls) {
  return {
    snapshot: ({ sandbox = '', signal }: WorldviewOptions = {}): Promise<WorldviewSnapshot> =>
      calls.ask(async (options) => {
        const pages = new Pages();
        for await (const { update } of client.watchWorldview({ sandbox, follow: false }, options)) {
          if (update.case === 'page') pages.add(update.value);
        }
        return pages.snapshot();
      }, signal),

    /**
     * A snapshot, then every later event in order, without a gap or a repeat; after a broken connection it goes on after the last event.
     * A watcher that was too slow, so that events were dropped, receives a new snapshot (I-36).
     */
    async *watch(options: WatchWorldviewOptions = {}): AsyncGenerator<WorldviewUpdate, void, undefined> {
      const { sandbox = '', afterId = 0n, onReconnect, signal } = options;
      let position = afterId;
      for (;;) {
        let pages = new Pages();
        const open = (): AsyncIterable<api.WorldviewUpdate> => {
          // A snapshot that broke off is requested again.
          pages = new Pages();
          return client.watchWorldview({ sandbox, afterId: position, follow: true }, optionsOf(signal));
        };
        for await (const { update } of reconnecting(calls, open, { follow: true, onReconnect, signal })) {
          if (update.case === 'page') {
            pages.add(update.value);
            if (!update.value.last) continue;
            const snapshot = pages.snapshot();
            pages = new Pages();
            position = snapshot.atEventId;
            yield snapshot;
          } else if (update.case === 'event') {
            if (update.value.lost > 0n) break;
            position = update.value.id;
            yield { kind: 'event', event: update.value };
          }
        }
        // A new snapshot includes the effect of the dropped events.
        position = 0n;
      }
    },
  };
}

/** The pages of a snapshot. */
class Pages {
  readonly #sandboxes: api.SandboxView[] = [];
  #atEventId: bigint | undefined;

  add({ atEventId, sandboxes }: api.WorldviewPage): void {
    // The first page has the position.
    this.#atEventId ??= atEventId;
    this.#sandboxes.push(...sandboxes);
  }

  snapshot(): WorldviewSnapshot {
    return { kind: 'snapshot', atEventId: this.#atEventId ?? 0n, sandboxes: this.#sandboxes };
  }
}
