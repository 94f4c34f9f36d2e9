import { DatabaseSync } from 'node:sqlite';
import { setImmediate as nextTurn } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { DroverError, FakeClock, newHostId } from '@drover/foundation';
import type { SandboxRow } from '../model/sandbox.ts';
import type { Store } from './index.ts';
import { draft, readyHost } from './testing/fixtures.ts';
import { TestStores } from './testing/stores.ts';

describe.each(['sqlite', 'postgres'] as const)('the store on %s', (kind) => {
  const stores = new TestStores(kind);
  let clock: FakeClock;
  let store: Store;
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    clock = new FakeClock(1_000_000);
    store = await stores.open({ clock });
  });
  afterEach(() => stores.closeAll());

  const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
  const names = async (): Promise<string[]> => (await store.sandboxes.list({ includeDeleted: true })).map((row) => row.name);

  describe('several calls as one transaction', () => {
    it('commit together with their events, and notify listeners once', async () => {
      const host = await readyHost(store);
      const before = await store.events.lastId();
      // The listeners have been notified of the earlier commits.
      await nextTurn();
      let woken = 0;
      store.events.onAppend(() => woken++);
      const row = await store.together(async (tables) => {
        const { id } = await tables.sandboxes.create(draft({ name: 'one' }));
        expect(await tables.sandboxes.place(id, host.id)).toBe(true);
        // PostgreSQL's notifications of earlier commits may arrive at any time.
        if (kind === 'sqlite') expect(woken).toBe(0);
        return await tables.sandboxes.find('one');
      });
      expect(row.hostId).toBe(host.id);
      await nextTurn();
      if (kind === 'sqlite') expect(woken).toBe(1);
      expect((await store.events.after(before, 10)).map((event) => event.type)).toEqual([
        'SandboxCreated',
        'SandboxStateChanged',
        'SandboxScheduled',
      ]);
    });

    it('leave nothing behind when one of them fails: no row, no reservation, no event', async () => {
      const host = await readyHost(store);
      const before = await store.events.lastId();
      const failing = store.together(async ({ sandboxes }) => {
        const { id } = await sandboxes.create(draft({ name: 'one' }));
        await sandboxes.place(id, host.id);
        await sandboxes.create(draft({ name: 'one' }));
      });
      await expect(failing).rejects.toMatchObject({ code: 'name-taken' });
      expect(await names()).toEqual([]);
      expect((await store.hosts.get(host.id))?.reserved.slots).toBe(0);
      expect(await store.events.lastId()).toBe(before);
    });
  });

  it('a transaction that calls the store instead of its tables fails instead of deadlocking', async () => {
    const { id } = await readyHost(store);
    await expect(store.together(async () => await store.hosts.get(id))).rejects.toMatchObject({ code: 'internal' });
    await expect(store.together(async () => await store.sandboxes.create(draft()))).rejects.toMatchObject({ code: 'internal' });
    expect(await names()).toEqual([]);
  });

  describe('idempotency', () => {
    it('L-20: of concurrent calls with the same key, one runs the action, and all return its response', async () => {
      let runs = 0;
      const action = async (): Promise<Uint8Array> => {
        runs++;
        await new Promise((resolve) => {
          setImmediate(resolve);
        });
        return bytes(`answer ${runs}`);
      };
      const answers = await Promise.all(Array.from({ length: 5 }, () => store.idempotency.once('k', 'Create', bytes('r'), action)));
      expect(runs).toBe(1);
      expect(answers.map((answer) => new TextDecoder().decode(answer))).toEqual(Array.from({ length: 5 }, () => 'answer 1'));
    });

    it('L-20: a failure leaves nothing behind, and another request with the same key is refused', async () => {
      const once = store.idempotency.once.bind(store.idempotency);
      const failing = once('k', 'Create', bytes('r'), async ({ sandboxes }) => {
        await sandboxes.create(draft({ name: 'half' }));
        throw new Error('no');
      });
      await expect(failing).rejects.toThrow('no');
      expect(await names()).toEqual([]);
      expect(await once('k', 'Create', bytes('r'), () => Promise.resolve(bytes('yes')))).toEqual(bytes('yes'));
      for (const [method, request] of [
        ['Create', 's'],
        ['Delete', 'r'],
      ] as const) {
        await expect(once('k', method, bytes(request), never)).rejects.toMatchObject({ code: 'idempotency-key-reused' });
      }
    });

    it('keys are dropped by age and by number, oldest first', async () => {
      const use = async (key: string): Promise<Uint8Array> =>
        await store.idempotency.once(key, 'Create', bytes('r'), () => Promise.resolve(bytes(`${key} at ${clock.now()}`)));
      const first: Uint8Array[] = [];
      for (const key of ['a', 'b', 'c', 'd']) {
        await clock.advance(1_000);
        first.push(await use(key));
      }
      expect(await store.idempotency.trim(clock.now() - 2_500, 10)).toBe(1);
      expect(await store.idempotency.trim(0, 2)).toBe(1);
      await clock.advance(1_000);
      expect([await use('c'), await use('d')]).toEqual(first.slice(2));
      expect(await use('a')).not.toEqual(first[0]);
    });
  });

  describe('retention', () => {
    it('deleted sandboxes are dropped by age and by number; lists stay correct, also after a page that ends at a dropped one', async () => {
      const rows: SandboxRow[] = [];
      for (const name of ['a', 'b', 'c', 'd', 'e']) {
        await clock.advance(1_000);
        rows.push(await store.sandboxes.create(draft({ name, labels: { of: name } })));
      }
      for (const row of rows.slice(0, 4)) {
        await clock.advance(1_000);
        await store.sandboxes.setDesired(row.id, 'deleted');
      }
      const [a, b] = rows;
      if (a === undefined || b === undefined) throw new Error('expected two sandboxes');
      expect(await names()).toEqual(['a', 'b', 'c', 'd', 'e']);

      expect(await store.sandboxes.trimDeleted(clock.now() - 2_500, 10)).toBe(1);
      expect(await names()).toEqual(['b', 'c', 'd', 'e']);
      expect(await store.sandboxes.get(a.id)).toBeUndefined();
      await expect(store.sandboxes.find(a.id)).rejects.toMatchObject({ code: 'sandbox-not-found' });

      expect(await store.sandboxes.trimDeleted(0, 2)).toBe(1);
      expect(await names()).toEqual(['c', 'd', 'e']);
      const rest = await store.sandboxes.list({ includeDeleted: true, after: b });
      expect(rest.map((row) => row.name)).toEqual(['c', 'd', 'e']);
      expect(await store.sandboxes.trimDeleted(clock.now() + 1, 0)).toBe(2);
      // A present sandbox stays, whatever its age. A name is free as soon as its sandbox is deleted.
      expect(await names()).toEqual(['e']);
      expect(await store.sandboxes.list({ labels: { of: 'e' } })).toHaveLength(1);
    });

    it('a join token is dropped some time after it expired', async () => {
      await store.tokens.createJoin({ hash: 'old', expiresAt: clock.now() + 10, uses: 2, labels: {} });
      await store.tokens.createJoin({ hash: 'new', expiresAt: clock.now() + 10_000, uses: 2, labels: {} });
      expect(await store.tokens.takeJoin('old', newHostId())).toBeDefined();
      await clock.advance(100);
      expect(await store.tokens.trimJoin(clock.now() - 90)).toBe(0);
      expect(await store.tokens.trimJoin(clock.now())).toBe(1);
      expect(await store.tokens.takeJoin('new', newHostId())).toBeDefined();
    });
  });

  it('a database that a newer Drover has changed is refused in one sentence, and not modified', async () => {
    const url = await stores.newUrl();
    await stores.open({ url });
    await stores.closeAll();
    const insert = `insert into drover_migrations (name, applied_at) values ('999-later', 1)`;
    if (kind === 'sqlite') {
      const database = new DatabaseSync(url.slice('sqlite:'.length));
      database.exec(insert);
      database.close();
    } else {
      const client = new pg.Client({ connectionString: url });
      await client.connect();
      await client.query(insert);
      await client.end();
    }
    const refusal = await stores.open({ url }).catch((error: unknown) => error);
    if (!(refusal instanceof DroverError)) throw new Error('it was opened');
    expect(refusal.code).toBe('failed-precondition');
    expect(refusal.message).toBe('the database was changed by a newer Drover (migration 999-later)');
    expect(refusal.hint).toMatch(/run that version/);
  });
});

function never(): Promise<Uint8Array> {
  throw new Error('this must not run');
}
