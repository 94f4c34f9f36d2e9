import { FakeClock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { subscribeBackoffCapMs } from '../limits.ts';
import type { Store } from '../store/store.ts';
import { TestStores } from '../store/testing/stores.ts';
import { subscribe, type Subscription } from './subscribe.ts';
import type { ReadableEvents, WatchedEvent } from './watch.ts';

describe.each(['sqlite', 'postgres'] as const)('subscribers on %s', (kind) => {
  const stores = new TestStores(kind);
  const clock = new FakeClock(0);
  let store: Store;
  let stop: AbortController;
  let policies: Promise<void>[];
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    store = await stores.open({ clock });
    stop = new AbortController();
    policies = [];
  });
  afterEach(async () => {
    stop.abort();
    await Promise.all(policies);
    await stores.closeAll();
  });

  const write = async (count: number, of = 'session', subject = 'x'): Promise<void> =>
    await store.events.append(Array.from({ length: count }, () => ({ kind: of, type: 'Tick', subject, data: {} })));
  const begin = (
    handler: (event: WatchedEvent) => Promise<void> | void,
    options: Partial<Subscription> = {},
    events: ReadableEvents = store.events,
  ): void => {
    policies.push(subscribe(events, { name: 'test', clock, logger: silentLogger, ...options }, handler, stop.signal));
  };
  const until = async (what: () => boolean): Promise<void> => {
    for (const end = Date.now() + 10_000; !what(); ) {
      if (Date.now() > end) throw new Error(`never: ${what.toString()}`);
      await clock.advance(0);
    }
  };

  it('I-36: receive each event of their kinds once, in order, then new ones', async () => {
    await write(3);
    await write(1, 'host');
    const seen: number[] = [];
    begin((event) => void seen.push(event.id), { from: 'start', kinds: ['session'] });
    await until(() => seen.length === 3);
    await write(2);
    await until(() => seen.length === 5);
    expect(seen).toEqual([1, 2, 3, 5, 6]);
  });

  it('I-35: continue after an event, or begin now', async () => {
    await write(5);
    const [after, now]: [number[], number[]] = [[], []];
    begin((event) => void after.push(event.id), { from: { afterId: 3 } });
    begin((event) => void now.push(event.id));
    await until(() => after.length === 2);
    // A subscription begins at its first read, so events are written until it receives one.
    let last = 5;
    while (now.length === 0) {
      await write(1, 'session', 'later');
      last++;
      await new Promise((resolve) => setImmediate(resolve));
    }
    await until(() => now.at(-1) === last && after.at(-1) === last);
    expect(after).toEqual(Array.from({ length: last - 3 }, (_, index) => index + 4));
    expect(now).toEqual(after.slice(-now.length));
    expect(now[0]).toBeGreaterThan(5);
  });

  it('I-36: are isolated: one that throws receives the next event, and others receive all', async () => {
    const [failing, good]: [number[], number[]] = [[], []];
    begin(
      (event) => {
        failing.push(event.id);
        if (event.id % 2 === 1) throw new Error('a mistake in a policy');
        return Promise.reject(new Error('and another one'));
      },
      { from: 'start' },
    );
    begin((event) => void good.push(event.id), { from: 'start' });
    await write(4);
    await until(() => failing.length === 4 && good.length === 4);
    expect([failing, good]).toEqual([
      [1, 2, 3, 4],
      [1, 2, 3, 4],
    ]);
  });

  it('I-36: that are slow lose the oldest events, learn how many, and delay no other', async () => {
    const gate = Promise.withResolvers<void>();
    const seen: [number, number][] = [];
    begin(
      async (event) => {
        seen.push([event.id, event.lost]);
        await gate.promise;
      },
      { from: 'start' },
    );
    await write(1);
    await until(() => seen.length === 1);
    // While it handles the first event, more are written, and old ones are trimmed.
    await write(20);
    await store.events.trim(5);
    gate.resolve();
    await until(() => seen.length === 6);
    expect(seen).toEqual([
      [1, 0],
      [17, 15],
      [18, 0],
      [19, 0],
      [20, 0],
      [21, 0],
    ]);
  });

  it('retry a failing store, and continue at their position', async () => {
    let down = true;
    const events: ReadableEvents = {
      after: async (...asked) => (down ? await Promise.reject(new Error('gone')) : await store.events.after(...asked)),
      lastId: async () => (down ? await Promise.reject(new Error('gone')) : await store.events.lastId()),
      onAppend: (listener) => store.events.onAppend(listener),
    };
    await write(2);
    const seen: number[] = [];
    begin((event) => void seen.push(event.id), { from: 'start' }, events);
    await clock.advance(subscribeBackoffCapMs);
    down = false;
    await clock.advance(subscribeBackoffCapMs);
    await until(() => seen.length === 2);
    down = true;
    await write(2);
    await clock.advance(subscribeBackoffCapMs);
    down = false;
    for (let i = 0; i < 3; i++) await clock.advance(subscribeBackoffCapMs);
    await until(() => seen.length === 4);
    expect(seen).toEqual([1, 2, 3, 4]);
  });

  it('end with their signal, without an error', async () => {
    begin(() => undefined);
    await clock.advance(0);
    stop.abort();
    await expect(Promise.all(policies)).resolves.toEqual([undefined]);
  });
});
