import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';
import { reconnecting } from './reconnecting.ts';

export interface WorldviewOptions {
  /** A sandbox id; absent is all. */
  readonly sandbox?: string;
  readonly signal?: AbortSignal;
}

export interface WatchWorldviewOptions extends WorldviewOptions {
  /** Goes on after this event, without a snapshot: the last one that was seen before a restart of your own. Absent begins with a snapshot. */
  readonly afterId?: bigint;
  /** Told each time the connection broke and is being made again. */
  readonly onReconnect?: (error: Error) => void;
}

/** What is true of every sandbox that was asked for, at one moment. */
export interface WorldviewSnapshot {
  readonly kind: 'snapshot';
  /** The event that it stands at: every later one changes it. */
  readonly atEventId: bigint;
  readonly sandboxes: readonly api.SandboxView[];
}

/** A snapshot replaces everything known before; an event (of kind sandbox, session, identity or init) may change the one that is its subject, and told twice changes nothing. */
export type WorldviewUpdate = WorldviewSnapshot | { readonly kind: 'event'; readonly event: api.Event };

/** What is true now of sessions, identities and init plans (I-35). Everything rejects with a DroverError. */
export interface WorldviewApi {
  snapshot(options?: WorldviewOptions): Promise<WorldviewSnapshot>;
  /**
   * A snapshot, then every later event, in order, without a gap or a repeat; after a broken connection it goes on behind the last
   * event. A watcher that was so slow that events were lost begins again with a new snapshot (I-36).
   */
  watch(options?: WatchWorldviewOptions): AsyncIterable<WorldviewUpdate>;
}

export function worldviewApi(client: Client<typeof api.EventService>, calls: Calls): WorldviewApi {
  return {
    snapshot: ({ sandbox = '', signal } = {}) =>
      calls.ask(async () => {
        const pages = new Pages();
        for await (const { update } of client.watchWorldview({ sandbox, follow: false }, withSignal(signal))) {
          if (update.case === 'page') pages.add(update.value);
        }
        return pages.snapshot();
      }, signal),

    async *watch({ sandbox = '', afterId = 0n, onReconnect, signal } = {}) {
      let position = afterId;
      for (;;) {
        let pages = new Pages();
        const open = (): AsyncIterable<api.WorldviewUpdate> => {
          // A snapshot that broke off is asked for anew.
          pages = new Pages();
          return client.watchWorldview({ sandbox, afterId: position, follow: true }, withSignal(signal));
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
        // What was lost is in a new snapshot.
        position = 0n;
      }
    },
  };
}

/** A snapshot on its way. */
class Pages {
  readonly #sandboxes: api.SandboxView[] = [];
  #atEventId: bigint | undefined;

  add({ atEventId, sandboxes }: api.WorldviewPage): void {
    // The first page says where it stands.
    this.#atEventId ??= atEventId;
    this.#sandboxes.push(...sandboxes);
  }

  snapshot(): WorldviewSnapshot {
    return { kind: 'snapshot', atEventId: this.#atEventId ?? 0n, sandboxes: this.#sandboxes };
  }
}
