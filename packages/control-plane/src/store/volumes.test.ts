import { FakeClock } from '@drover/foundation';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { Store } from './index.ts';
import { draft, readyHost } from './testing/fixtures.ts';
import { TestStores } from './testing/stores.ts';

describe.each(['sqlite', 'postgres'] as const)('R-18: volumes on %s', (kind) => {
  const stores = new TestStores(kind);
  const clock = new FakeClock(1_000_000);
  let store: Store;
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    store = await stores.open({ clock });
  });
  afterEach(() => stores.closeAll());

  const readyVolume = async (name: string): Promise<void> => {
    const host = await readyHost(store);
    await store.volumes.create({ name, hostId: host.id, sizeBytes: 2 ** 30 });
    await store.volumes.settle(name, 'pending', { state: 'ready', message: '', hint: '' });
  };

  it('sandboxes that use a volume prevent its removal; deleted sandboxes do not', async () => {
    await readyVolume('data');
    const web = await store.sandboxes.create(draft({ name: 'web' }));
    await store.volumes.use(['data'], web.id);
    await expect(store.volumes.remove('data')).rejects.toMatchObject({ code: 'volume-in-use', message: expect.stringContaining('web') });
    expect(await store.volumes.users(['data'])).toEqual(new Map([['data', ['web']]]));
    await store.sandboxes.setDesired(web.id, 'deleted');
    expect((await store.sandboxes.get(web.id))?.deletedAt).toBeDefined();
    expect(await store.volumes.users(['data'])).toEqual(new Map());
    expect((await store.volumes.remove('data')).state).toBe('deleting');
    await store.volumes.drop('data');
    await expect(store.volumes.find('data')).rejects.toMatchObject({ code: 'volume-not-found' });
    // The later deletion of the sandbox's row succeeds.
    await clock.advance(1);
    expect(await store.sandboxes.trimDeleted(clock.now() + 1, 0)).toBe(1);
  });

  it('a sandbox cannot use a volume that is not ready or is being removed', async () => {
    const host = await readyHost(store);
    await store.volumes.create({ name: 'data', hostId: host.id, sizeBytes: 2 ** 30 });
    const web = await store.sandboxes.create(draft({ name: 'web' }));
    await expect(store.volumes.use(['data'], web.id)).rejects.toMatchObject({ code: 'failed-precondition' });
    await store.volumes.remove('data');
    await expect(store.volumes.use(['data'], web.id)).rejects.toMatchObject({ code: 'failed-precondition' });
    expect(await store.volumes.list({ unsettled: true })).toMatchObject([{ name: 'data', state: 'deleting' }]);
  });

  it('of a concurrent use and removal, exactly one succeeds', async () => {
    await readyVolume('data');
    const web = await store.sandboxes.create(draft({ name: 'web' }));
    const outcomes = await Promise.allSettled([store.volumes.use(['data'], web.id), store.volumes.remove('data')]);
    expect(outcomes.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
  });
});
