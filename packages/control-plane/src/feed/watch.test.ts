import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { FakeClock } from '@drover/foundation';
import type { Store } from '../store/store.ts';
import { TestStores } from '../store/testing/stores.ts';
import { watchEvents, type WatchedEvent, type WatchOptions, type ReadableEvents } from './watch.ts';

describe.each(['sqlite', 'postgres'] as const)('watching events on %s', (kind) => {
  const stores = new TestStores(kind);
  const clock = new FakeClock(0);
  let store: Store;
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    store = await stores.open({ clock });
  });
  afterEach(() => stores.closeAll());

  const write = async (count: number, eventKind = 'test', subject = 'x'): Promise<void> =>
    await store.events.append(Array.from({ length: count }, () => ({ kind: eventKind, type: 'Tick', subject, data: {} })));
  const all = async (options: Omit<WatchOptions, 'clock'>): Promise<WatchedEvent[]> =>
    await Array.fromAsync(watchEvents(store.events, { ...options, clock }, new AbortController().signal));

  it('I-35: yields the retained events in order, over many pages', async () => {
    await write(700);
    expect((await all({ fromStart: true })).map((event) => event.id)).toEqual(Array.from({ length: 700 }, (_, i) => i + 1));
    expect(await all({})).toEqual([]);
  });

  it('I-35: resumes from an id without a gap or a repeat, while events are being written', async () => {
    const seen: number[] = [];
    const writing = (async () => {
      for (let i = 0; i < 30; i++) await write(10);
    })();
    while (seen.length < 300) {
      const stop = new AbortController();
      const last = seen.at(-1);
      const options = last === undefined ? { fromStart: true } : { afterId: last };
      let budget = 37;
      for await (const event of watchEvents(store.events, { ...options, follow: true, clock }, stop.signal)) {
        seen.push(event.id);
        if (--budget === 0 || seen.length === 300) break;
      }
    }
    await writing;
    expect(seen).toEqual(Array.from({ length: 300 }, (_, i) => i + 1));
  });

  it('I-36: a slow watcher continues with the oldest retained event, which counts the lost ones', async () => {
    await write(10);
    const watching = watchEvents(store.events, { fromStart: true, follow: true, clock }, new AbortController().signal);
    for (let i = 0; i < 10; i++) expect((await watching.next()).value).toMatchObject({ id: i + 1, lost: 0 });
    await write(50);
    await store.events.trim(5);
    expect((await watching.next()).value).toMatchObject({ id: 56, lost: 45 });
    expect((await watching.next()).value).toMatchObject({ id: 57, lost: 0 });
    await watching.return(undefined);
  });

  it('I-35: in an empty store, an event that is written while the watch begins is not skipped', async () => {
    let asked = 0;
    const events: ReadableEvents = {
      after: async (...args) => {
        const page = await store.events.after(...args);
        // The first read finds no event, and the next one finds one.
        if (asked++ === 0) await write(1);
        return page;
      },
      lastId: async () => await store.events.lastId(),
      onAppend: (listener) => store.events.onAppend(listener),
    };
    const seen = await Array.fromAsync(watchEvents(events, { fromStart: true, clock }, new AbortController().signal));
    expect(seen.map((event) => event.id)).toEqual([1]);
  });

  it('yields only the requested kinds and subject', async () => {
    await write(2, 'sandbox', 'a');
    await write(2, 'host', 'b');
    await write(1, 'sandbox', 'b');
    expect((await all({ fromStart: true, kinds: ['sandbox'] })).map((event) => event.id)).toEqual([1, 2, 5]);
    expect((await all({ fromStart: true, kinds: ['sandbox'], subject: 'b' })).map((event) => event.id)).toEqual([5]);
    await store.events.trim(3);
    expect(await all({ afterId: 1, kinds: ['sandbox'] })).toMatchObject([{ id: 5, lost: 1 }]);
  });

  it('a filtered watcher that has read everything loses nothing when old events are trimmed', async () => {
    await write(3, 'host');
    const watching = watchEvents(store.events, { fromStart: true, follow: true, kinds: ['sandbox'], clock }, new AbortController().signal);
    const next = watching.next();
    // The watcher has read everything, and waits.
    while (clock.sleeping === 0) await clock.advance(0);
    await store.events.trim(0);
    await write(1, 'sandbox');
    expect((await next).value).toMatchObject({ id: 4, lost: 0 });
    await watching.return(undefined);
  });

  it('ends without an error when its watcher disconnects', async () => {
    const stop = new AbortController();
    const watching = watchEvents(store.events, { follow: true, clock }, stop.signal);
    const next = watching.next();
    await clock.advance(0);
    stop.abort();
    expect(await next).toEqual({ done: true, value: undefined });
  });
});
