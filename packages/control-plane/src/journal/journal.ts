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

/** Something to be written: an event, or checks that were made. Numbered in the order in which they came. */
interface Entry {
  readonly sequence: number;
  readonly at: number;
  readonly what:
    | { readonly kind: 'event'; readonly event: SandboxEvent }
    | { readonly kind: 'checks'; readonly sandboxId: SandboxId; checks: readonly TrustCheck[] };
}

/**
 * The worldview and the journal in the store (I-35). Whoever publishes never waits: entries go into a bounded queue, and one loop
 * writes all that is queued in one transaction, events and the views that they make together.
 *
 * Nothing is kept in memory: a view is read, changed and written within that transaction. So a restart begins with what is stored,
 * and replicas never write over each other's views with older ones of their own.
 */
export class StoredWorldview implements Worldview, Journal {
  readonly #options: StoredWorldviewOptions;
  readonly #queue: Entry[] = [];
  /** Of them, the checks, by sandbox and source: of what a source says again, only the last counts, and takes no further place. */
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

  /** Takes nothing more; what is queued is written, or given up at the first failure. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#writing;
  }

  #push(what: Entry['what']): void {
    const { clock, logger } = this.#options;
    if (this.#closing.signal.aborted) {
      logger.debug({ what }, 'said to a worldview that was closed already');
      return;
    }
    if (this.#queue.length >= journalQueue) {
      this.#take(1);
      this.#dropped++;
    }
    this.#queue.push({ sequence: this.#next++, at: clock.now(), what });
    if (what.kind === 'checks') this.#queuedChecks.set(keyOf(what.sandboxId, what.checks), what);
    this.#writing ??= this.#run();
  }

  /** The oldest, out of the queue. */
  #take(count: number): readonly Entry[] {
    const taken = this.#queue.splice(0, count);
    for (const { what } of taken) if (what.kind === 'checks') this.#queuedChecks.delete(keyOf(what.sandboxId, what.checks));
    return taken;
  }

  /** Until nothing is queued. */
  async #run(): Promise<void> {
    // What is published together is written together, and after what was sent in the same turn has gone out: a commit waits for
    // the disk, and a dial's first frame does not have to.
    await new Promise((resolve) => setImmediate(resolve));
    while (this.#queue.length > 0) {
      this.#tellDropped();
      await this.#write(this.#take(journalBatch));
      const pending = this.#queue[0]?.sequence ?? this.#next;
      for (const flush of this.#flushes) {
        if (flush.upTo >= pending) continue;
        this.#flushes.delete(flush);
        flush.resolve();
      }
    }
    this.#writing = undefined;
  }

  #tellDropped(): void {
    if (this.#dropped === 0) return;
    this.#options.logger.error(
      { dropped: this.#dropped, limit: journalQueue },
      'the oldest events were lost: the store was too slow for them',
    );
    this.#dropped = 0;
  }

  /** Never throws: what cannot be stored is tried again, in its order, and then given up. */
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
          logger.error({ err: error, lost: batch.length, attempt }, 'events could not be stored, and are lost');
          return;
        }
        logger.warn({ err: error, waiting: batch.length + this.#queue.length, attempt }, 'events could not be stored; it is tried again');
        // Only closing rejects it: then the next attempt is the last.
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
  // A sandbox that was deleted gets no view again: the store sees to that.
  await tables.views.put([...changed.values()], events);
}

function draftOf({ kind, type, subject, data }: SandboxEvent): EventDraft {
  return { kind, type, subject, data: { ...data } };
}
