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

/** A store whose transactions fail while `down` is set, and wait while `held` is set. */
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
  /** Lets pending work proceed without advancing the clock. */
  const settle = async (): Promise<void> => {
    for (let i = 0; i < 20; i++) await clock.advance(0);
  };
  /** The parsed lines of the log. */
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

  it('I-35: events that are published together are stored together, in order, with their view', async () => {
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

  it('I-35: a restart continues from the stored views', async () => {
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

  it('I-35: two replicas that publish about one sandbox do not overwrite each other', async () => {
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

  it('an unknown sandbox has an empty view; `many` returns views in the requested order', async () => {
    const another = (await store.sandboxes.create(draft())).id;
    worldview.publish(connecting(another, 3));
    await worldview.flush();
    expect(await worldview.get(id)).toEqual(emptyView(id));
    const views = await worldview.many([another, id]);
    expect([...views.keys()]).toEqual([another, id]);
    expect([...views.values()].map(({ session }) => session.state)).toEqual(['connecting', 'none']);
  });

  it('an event about a replica is stored, and changes no view', async () => {
    worldview.publish({ kind: 'identity', type: 'ReapDegraded', subject: 'replica-1', data: { attempts: 3, message: 'no answer' } });
    await worldview.flush();
    expect(await store.events.after(0, 10, { kinds: ['identity'] })).toMatchObject([{ type: 'ReapDegraded', subject: 'replica-1' }]);
    expect((await store.views.get(['replica-1' as SandboxId])).size).toBe(0);
  });

  it('I-11: an event about a deleted sandbox is stored, and does not recreate its view', async () => {
    worldview.publish(connecting(id, 1));
    await worldview.flush();
    await store.sandboxes.setDesired(id, 'deleted');
    worldview.publish(connecting(id, 2));
    worldview.record(id, [{ check: 'cn', verdict: 'pass', evidence: '', at: 1, source: 'session' }]);
    await worldview.flush();
    expect(await attempts()).toEqual([1, 2]);
    expect((await store.views.get([id])).size).toBe(0);
  });

  it('I-36: a publisher never waits for the store: an overflow drops the oldest entries, and their number is logged', async () => {
    const { lines, logger } = logged();
    const gate = Promise.withResolvers<void>();
    hindered.held = gate.promise;
    worldview = open(logger);
    worldview.publish(connecting(id, 0));
    // The loop is writing the first entry.
    await settle();
    for (let attempt = 1; attempt <= journalQueue + 7; attempt++) worldview.publish(connecting(id, attempt));
    gate.resolve();
    await worldview.flush();
    const stored = await store.events.after(0, 10_000, { kinds: ['session'] });
    expect(stored.at(0)?.data['attempt']).toBe(0);
    expect(stored.at(1)?.data['attempt']).toBe(8);
    expect(await store.events.lastId()).toBe(1 + 1 + journalQueue);
    expect(lines.filter((line) => line['dropped'] !== undefined)).toMatchObject([{ dropped: 7, limit: journalQueue }]);
    // In batches, not in single writes.
    expect(hindered.transactions).toBe(1 + Math.ceil(journalQueue / journalBatch));
  });

  it('I-36: repeated checks of one sandbox do not displace the entries of others', async () => {
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
    // After the write, new checks enter the queue again.
    worldview.record(id, [check('register', 'later')]);
    await worldview.flush();
    expect((await worldview.get(id)).checks.map(({ evidence }) => evidence)).toContain('later');
  });

  it('a temporary failure of the store loses nothing, and keeps the order', async () => {
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

  it('a batch is dropped after the last retry: flush resolves, and later events are stored', async () => {
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

  it('close writes the queue; if the store fails, it drops the queue immediately', async () => {
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
