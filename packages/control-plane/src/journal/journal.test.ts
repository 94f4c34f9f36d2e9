import { Writable } from 'node:stream';
import { FakeClock, type Logger, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { SandboxEvent } from '../events/typed.ts';
import { journalAttempts, journalBackoffCapMs, journalBatch, journalQueue } from '../limits.ts';
import type { Store, Tables } from '../store/index.ts';
import { draft } from '../store/testing/fixtures.ts';
import { TestStores } from '../store/testing/stores.ts';
import { emptyView } from '../worldview/apply.ts';
import { StoredWorldview } from './journal.ts';
import type { TrustCheck } from '../worldview/worldview.ts';

const connecting = (subject: string, attempt: number): SandboxEvent => ({
  kind: 'session',
  type: 'SessionConnecting',
  subject,
  data: { attempt },
});

/** The store's transactions fail as long as `down`, and wait as long as `held`. */
class Hindered {
  readonly #store: Store;
  down = false;
  held: Promise<void> = Promise.resolve();
  transactions = 0;
  failures = 0;

  constructor(store: Store) {
    this.#store = store;
  }

  get views(): Store['views'] {
    return this.#store.views;
  }

  async together<T>(work: (tables: Tables) => Promise<T>): Promise<T> {
    await this.held;
    if (this.down) {
      this.failures++;
      throw new Error('the disk is gone');
    }
    this.transactions++;
    return await this.#store.together(work);
  }
}

describe.each(['sqlite', 'postgres'] as const)('the worldview on %s', (kind) => {
  const stores = new TestStores(kind);
  const clock = new FakeClock(1_000);
  let store: Store;
  let hindered: Hindered;
  let worldview: StoredWorldview;
  let id: SandboxId;
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    store = await stores.open({ clock });
    hindered = new Hindered(store);
    worldview = open();
    id = (await store.sandboxes.create(draft())).id;
  });
  afterEach(async () => {
    await worldview.close();
    await stores.closeAll();
  });

  const open = (logger: Logger = silentLogger): StoredWorldview => new StoredWorldview({ store: hindered, clock, logger, random: () => 1 });
  const attempts = async (): Promise<unknown[]> =>
    (await store.events.after(0, 10_000, { kinds: ['session'] })).map(({ data }) => data['attempt']);
  /** Lets what runs go on, without time passing. */
  const settle = async (): Promise<void> => {
    for (let i = 0; i < 20; i++) await clock.advance(0);
  };
  /** The lines of the log, parsed, as they come. */
  const logged = (): { readonly lines: Record<string, unknown>[]; readonly logger: Logger } => {
    const lines: Record<string, unknown>[] = [];
    const sink = new Writable({
      write: (chunk: Buffer, _encoding, done) => {
        lines.push(JSON.parse(chunk.toString()) as Record<string, unknown>);
        done();
      },
    });
    return { lines, logger: pino({ level: 'debug' }, sink) };
  };

  it('I-35: what is published together is stored together, in order, with the view that it makes', async () => {
    for (let attempt = 1; attempt <= 5; attempt++) worldview.publish(connecting(id, attempt));
    worldview.record(id, [{ check: 'cn', verdict: 'pass', evidence: 'it is box', at: 1_000, source: 'session' }]);
    await worldview.flush();
    expect(hindered.transactions).toBe(1);
    expect(await attempts()).toEqual([1, 2, 3, 4, 5]);
    expect(await worldview.get(id)).toMatchObject({
      session: { state: 'connecting', since: 1_000, attempts: 5 },
      checks: [{ check: 'cn' }],
    });
  });

  it('I-35: a restart goes on from what is stored', async () => {
    worldview.publish(connecting(id, 1));
    worldview.record(id, [{ check: 'cn', verdict: 'fail', evidence: 'it is not', at: 1_000, source: 'session' }]);
    worldview.publish({ kind: 'init', type: 'InitStarted', subject: id, data: { count: 5, startCount: 1 } });
    await worldview.close();
    worldview = open();
    worldview.publish({ kind: 'session', type: 'SessionBroken', subject: id, data: { message: 'restarted' } });
    await worldview.flush();
    expect(await worldview.get(id)).toMatchObject({
      session: { state: 'broken', attempts: 1, lastError: 'restarted' },
      init: { state: 'running', startCount: 1 },
      checks: [{ check: 'cn', verdict: 'fail' }],
    });
  });

  it('I-35: two replicas that tell of one sandbox in turn do not undo what the other told', async () => {
    const other = open();
    worldview.publish({ kind: 'init', type: 'InitStarted', subject: id, data: { count: 5, startCount: 1 } });
    await worldview.flush();
    other.publish({ kind: 'init', type: 'InitCompleted', subject: id, data: { count: 5, durationMs: 1, startCount: 1 } });
    await other.flush();
    worldview.publish(connecting(id, 1));
    await worldview.flush();
    expect(await worldview.get(id)).toMatchObject({ session: { state: 'connecting' }, init: { state: 'completed' } });
    await other.close();
  });

  it('what nothing is known of has an empty view; many come in the order that is asked for', async () => {
    const another = (await store.sandboxes.create(draft())).id;
    worldview.publish(connecting(another, 3));
    await worldview.flush();
    expect(await worldview.get(id)).toEqual(emptyView(id));
    const views = await worldview.many([another, id]);
    expect([...views.keys()]).toEqual([another, id]);
    expect([...views.values()].map(({ session }) => session.state)).toEqual(['connecting', 'none']);
  });

  it('an event about a replica is stored, and makes no view', async () => {
    worldview.publish({ kind: 'identity', type: 'ReapDegraded', subject: 'replica-1', data: { attempts: 3, message: 'no answer' } });
    await worldview.flush();
    expect(await store.events.after(0, 10, { kinds: ['identity'] })).toMatchObject([{ type: 'ReapDegraded', subject: 'replica-1' }]);
    expect((await store.views.get(['replica-1' as SandboxId])).size).toBe(0);
  });

  it('I-11: what is told of a sandbox that was deleted is stored as an event, and brings no view back', async () => {
    worldview.publish(connecting(id, 1));
    await worldview.flush();
    await store.sandboxes.setDesired(id, 'deleted');
    worldview.publish(connecting(id, 2));
    worldview.record(id, [{ check: 'cn', verdict: 'pass', evidence: '', at: 1, source: 'session' }]);
    await worldview.flush();
    expect(await attempts()).toEqual([1, 2]);
    expect((await store.views.get([id])).size).toBe(0);
  });

  it('I-36: a publisher never waits for the store: what is too much is lost, the oldest first, and the log says how many', async () => {
    const { lines, logger } = logged();
    const gate = Promise.withResolvers<void>();
    hindered.held = gate.promise;
    worldview = open(logger);
    worldview.publish(connecting(id, 0));
    // The loop has the first in its hands.
    await settle();
    for (let attempt = 1; attempt <= journalQueue + 7; attempt++) worldview.publish(connecting(id, attempt));
    gate.resolve();
    await worldview.flush();
    const stored = await store.events.after(0, 10_000, { kinds: ['session'] });
    expect(stored.at(0)?.data['attempt']).toBe(0);
    expect(stored.at(1)?.data['attempt']).toBe(8);
    expect(await store.events.lastId()).toBe(1 + 1 + journalQueue);
    expect(lines.filter((line) => line['dropped'] !== undefined)).toMatchObject([{ dropped: 7, limit: journalQueue }]);
    // In batches, not one by one.
    expect(hindered.transactions).toBe(1 + Math.ceil(journalQueue / journalBatch));
  });

  it('I-36: a sandbox of which the same is checked over and over takes no room from what others have to tell', async () => {
    const { lines, logger } = logged();
    const gate = Promise.withResolvers<void>();
    hindered.held = gate.promise;
    worldview = open(logger);
    worldview.publish(connecting(id, 0));
    await settle();
    worldview.publish(connecting(id, 1));
    const check = (source: 'session' | 'register', evidence: string): TrustCheck => ({
      check: 'cn',
      verdict: 'fail',
      evidence,
      at: 1,
      source,
    });
    for (let i = 0; i <= journalQueue; i++) {
      worldview.record(id, [check('register', `the ${i}th`)]);
      worldview.record(id, [check('session', `number ${i}`)]);
    }
    gate.resolve();
    await worldview.flush();
    expect(await attempts()).toEqual([0, 1]);
    expect((await worldview.get(id)).checks.map(({ evidence }) => evidence)).toEqual([`the ${journalQueue}th`, `number ${journalQueue}`]);
    expect(lines).toEqual([]);
    // What was written makes room: it can be said again.
    worldview.record(id, [check('register', 'later')]);
    await worldview.flush();
    expect((await worldview.get(id)).checks.map(({ evidence }) => evidence)).toContain('later');
  });

  it('a store that fails for a while loses nothing, and keeps the order', async () => {
    hindered.down = true;
    worldview.publish(connecting(id, 1));
    await settle();
    worldview.publish(connecting(id, 2));
    for (let i = 0; i < 5; i++) await clock.advance(journalBackoffCapMs);
    expect(hindered.failures).toBeGreaterThanOrEqual(5);
    hindered.down = false;
    const flushed = worldview.flush();
    await clock.advance(journalBackoffCapMs);
    await flushed;
    expect(await attempts()).toEqual([1, 2]);
    expect((await worldview.get(id)).session.attempts).toBe(2);
  });

  it('a store that fails for good is given up in the end: flush comes back, and later events are stored', async () => {
    const { lines, logger } = logged();
    worldview = open(logger);
    hindered.down = true;
    worldview.publish(connecting(id, 1));
    const flushed = worldview.flush();
    for (let i = 0; i < journalAttempts; i++) await clock.advance(journalBackoffCapMs);
    await flushed;
    expect(hindered.failures).toBe(journalAttempts);
    expect(lines.filter((line) => line['lost'] !== undefined)).toMatchObject([{ lost: 1 }]);
    hindered.down = false;
    worldview.publish(connecting(id, 2));
    await worldview.flush();
    expect(await attempts()).toEqual([2]);
  });

  it('close writes what is queued; with a store that is gone it gives up at once', async () => {
    worldview.publish(connecting(id, 1));
    await worldview.close();
    expect(await attempts()).toEqual([1]);
    worldview.publish(connecting(id, 2));
    await worldview.flush();
    expect(await attempts()).toEqual([1]);

    hindered.down = true;
    const other = open();
    other.publish(connecting(id, 3));
    await settle();
    await other.close();
    expect(await attempts()).toEqual([1]);
  });
});
