import { Backoff, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import type { EventDraft, Journal, SandboxEvent } from '../events/index.ts';
import { journalAttempts, journalBackoffBaseMs, journalBackoffCapMs, journalBatch, journalQueue } from '../limits.ts';
import type { Store, Tables } from '../store/index.ts';
import {
  applyEvent,
  emptyView,
  isRepeated,
  recordChecks,
  viewSubject,
  type SandboxView,
  type TrustCheck,
  type Worldview,
} from '../worldview/index.ts';

export interface StoredWorldviewOptions {
  readonly store: Pick<Store, 'views' | 'together'>;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Draws the jitter of retries. */
  readonly random?: () => number;
}

/** A queued entry: an event, or trust checks. Numbered in the order of arrival. */
interface Entry {
  readonly sequence: number;
  readonly at: number;
  readonly what:
    | { readonly kind: 'event'; readonly event: SandboxEvent }
    | { readonly kind: 'checks'; readonly sandboxId: SandboxId; checks: readonly TrustCheck[] };
}

/**
 * The worldview and the journal in the store (I-35). A publisher never waits: entries enter a bounded queue, and one loop writes batches of
 * them. A transaction writes the events of a batch with the views that they change.
 *
 * No view is cached: the transaction reads, changes and writes it. So a restart continues from the stored views, and no replica overwrites
 * a view with an older one.
 */
export class StoredWorldview implements Worldview, Journal {
  readonly #options: StoredWorldviewOptions;
  readonly #queue: Entry[] = [];
  /** The queued checks by sandbox and source. New checks of the same sources replace the queued ones in place. */
  readonly #queuedChecks = new Map<string, Extract<Entry['what'], { kind: 'checks' }>>();
  readonly #flushes = new Set<{ readonly upTo: number; readonly resolve: () => void }>();
  readonly #closing = new AbortController();
  #next = 1;
  #dropped = 0;
  #writing: Promise<void> | undefined;

  constructor(options: StoredWorldviewOptions) {
    this.#options = options;
  }

  publish(event: SandboxEvent): void {
    this.#push({ kind: 'event', event });
  }

  record(sandboxId: SandboxId, checks: readonly TrustCheck[]): void {
    if (checks.length === 0) return;
    const queued = this.#queuedChecks.get(keyOf(sandboxId, checks));
    if (queued === undefined) this.#push({ kind: 'checks', sandboxId, checks });
    else queued.checks = checks;
  }

  async flush(): Promise<void> {
    if (this.#writing === undefined) return;
    await new Promise<void>((resolve) => {
      this.#flushes.add({ upTo: this.#next - 1, resolve });
    });
  }

  async get(id: SandboxId): Promise<SandboxView> {
    return (await this.many([id])).get(id) ?? emptyView(id);
  }

  async many(ids: readonly SandboxId[]): Promise<ReadonlyMap<SandboxId, SandboxView>> {
    if (ids.length === 0) return new Map();
    const found = await this.#options.store.views.get(ids);
    return new Map(ids.map((id) => [id, found.get(id) ?? emptyView(id)]));
  }

  /** Accepts no more entries. Writes the queued ones, and drops a batch at its first failure. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#writing;
  }

  #push(what: Entry['what']): void {
    const { clock, logger } = this.#options;
    if (this.#closing.signal.aborted) {
      logger.debug({ what }, 'an entry was dropped: the worldview is closed');
      return;
    }
    if (this.#queue.length >= journalQueue) {
      this.#dequeue(1);
      this.#dropped++;
    }
    this.#queue.push({ sequence: this.#next++, at: clock.now(), what });
    if (what.kind === 'checks') this.#queuedChecks.set(keyOf(what.sandboxId, what.checks), what);
    this.#writing ??= this.#run();
  }

  /** Removes the oldest entries from the queue. */
  #dequeue(count: number): readonly Entry[] {
    const oldest = this.#queue.splice(0, count);
    for (const { what } of oldest) if (what.kind === 'checks') this.#queuedChecks.delete(keyOf(what.sandboxId, what.checks));
    return oldest;
  }

  /** Writes batches until the queue is empty. */
  async #run(): Promise<void> {
    // One turn later, so that entries of one turn share a commit, and so that frames of this turn (the first of a dial) are sent before the
    // commit waits for the disk.
    await new Promise((resolve) => setImmediate(resolve));
    while (this.#queue.length > 0) {
      this.#logDropped();
      await this.#write(this.#dequeue(journalBatch));
      const pending = this.#queue[0]?.sequence ?? this.#next;
      for (const flush of this.#flushes) {
        if (flush.upTo >= pending) continue;
        this.#flushes.delete(flush);
        flush.resolve();
      }
    }
    this.#writing = undefined;
  }

  #logDropped(): void {
    if (this.#dropped === 0) return;
    this.#options.logger.error(
      { dropped: this.#dropped, limit: journalQueue },
      'the oldest entries of the journal were dropped: the store is too slow',
    );
    this.#dropped = 0;
  }

  /** Writes a batch, with retries, before any later batch. After the last retry it logs and drops the batch; it never rejects. */
  async #write(batch: readonly Entry[]): Promise<void> {
    const { store, clock, logger, random } = this.#options;
    const backoff = new Backoff({
      baseMs: journalBackoffBaseMs,
      capMs: journalBackoffCapMs,
      ...(random === undefined ? {} : { random }),
    });
    for (let attempt = 1; ; attempt++) {
      try {
        await store.together(async (tables) => await writeBatch(tables, batch));
        return;
      } catch (error) {
        if (this.#closing.signal.aborted || attempt >= journalAttempts) {
          logger.error({ err: error, lost: batch.length, attempt }, 'events could not be stored and are lost');
          return;
        }
        logger.warn({ err: error, waiting: batch.length + this.#queue.length, attempt }, 'events could not be stored; retrying');
        // Only `close` rejects the sleep; the next attempt is then the last.
        await clock.sleep(backoff.nextMs(), this.#closing.signal).catch(() => undefined);
      }
    }
  }
}

function keyOf(id: SandboxId, checks: readonly TrustCheck[]): string {
  return [id, ...new Set(checks.map(({ source }) => source))].join(' ');
}

async function writeBatch(tables: Tables, batch: readonly Entry[]): Promise<void> {
  const subjects = new Set<SandboxId>();
  for (const { what } of batch) {
    const subject = what.kind === 'event' ? viewSubject(what.event) : what.sandboxId;
    if (subject !== undefined) subjects.add(subject);
  }
  const views = await tables.views.get([...subjects], { lock: true });
  const changed = new Map<SandboxId, SandboxView>();
  const events: EventDraft[] = [];
  for (const { what, at } of batch) {
    const subject = what.kind === 'event' ? viewSubject(what.event) : what.sandboxId;
    const view = subject === undefined ? undefined : (changed.get(subject) ?? views.get(subject) ?? emptyView(subject));
    if (what.kind === 'event' && (view === undefined || !isRepeated(view, what.event))) events.push(draftOf(what.event));
    if (subject === undefined || view === undefined) continue;
    changed.set(subject, what.kind === 'event' ? applyEvent(view, what.event, at) : recordChecks(view, what.checks));
  }
  // `put` skips the views of deleted sandboxes.
  await tables.views.put([...changed.values()], events);
}

function draftOf({ kind, type, subject, data }: SandboxEvent): EventDraft {
  return { kind, type, subject, data: { ...data } };
}
