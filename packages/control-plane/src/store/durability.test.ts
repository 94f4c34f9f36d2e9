import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { isSandboxId, type HostId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { placeSandbox } from '../placement/index.ts';
import { openStore } from './open.ts';
import type { Store } from './index.ts';
import { draft, readyHost } from './testing/fixtures.ts';
import { TestStores } from './testing/stores.ts';

describe('acknowledged writes', () => {
  it('survive kill -9 of the writer (SQLite), with their events, reservations and order', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'drover-kill-'));
    const url = `sqlite:${join(directory, 'drover.db')}`;
    try {
      let acknowledged = 0;
      for (let round = 0; round < 3; round++) {
        const child = spawn(process.execPath, ['--conditions=development', join(import.meta.dirname, 'testing/writer.ts'), url], {
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        const exited = once(child, 'exit');
        const ids: string[] = [];
        for await (const line of createInterface({ input: child.stdout })) {
          ids.push(line);
          if (ids.length === 40 + round * 7) child.kill('SIGKILL');
        }
        await exited;
        acknowledged += ids.length;
        const store = await openStore(url, { logger: silentLogger });
        try {
          for (const id of ids.filter((line) => isSandboxId(line))) {
            expect(await store.sandboxes.get(id)).toMatchObject({ observed: 'running' });
          }
          const events = await store.events.after(0, 10_000);
          expect(events.map((event) => event.id)).toEqual(events.map((_, i) => i + 1));
          expect(events.filter((event) => event.data['to'] === 'running').length).toBeGreaterThanOrEqual(acknowledged);
          for (const host of await store.hosts.list()) {
            expect(host.reserved.slots).toBe((await store.sandboxes.onHost(host.id)).length);
          }
        } finally {
          await store.close();
        }
      }
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });
});

describe('L-20: a process that is killed during a call with an idempotency key', () => {
  const directories: string[] = [];
  const creator = async (url: string, dieBefore: number): Promise<string> => {
    const script = join(import.meta.dirname, 'testing/creator.ts');
    const child = spawn(process.execPath, ['--conditions=development', script, url, String(dieBefore)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const exited = once(child, 'exit');
    const said = (await child.stdout.toArray()).join('');
    const [code, signal] = (await exited) as [number | null, string | null];
    expect([code, signal]).toEqual(dieBefore === 0 ? [0, null] : [null, 'SIGKILL']);
    return said;
  };
  const newDatabase = async (): Promise<{ readonly url: string; readonly hostId: HostId }> => {
    const directory = await mkdtemp(join(tmpdir(), 'drover-once-'));
    directories.push(directory);
    const url = `sqlite:${join(directory, 'drover.db')}`;
    const store = await openStore(url, { logger: silentLogger });
    const host = await readyHost(store);
    await store.close();
    return { url, hostId: host.id };
  };
  afterAll(async () => {
    for (const directory of directories) await rm(directory, { recursive: true, force: true });
  });

  it('leaves all changes or none, and the repeated call changes nothing twice (SQLite)', async () => {
    const statements = Number(await creator((await newDatabase()).url, 0));
    expect(statements).toBeGreaterThan(5);
    const afterCommit = statements + 1;
    // Before the first statement, in the middle, around the write of the response, before the commit, after it.
    for (const dieBefore of [1, Math.ceil(statements / 2), statements - 3, statements, afterCommit]) {
      const { url, hostId } = await newDatabase();
      await creator(url, dieBefore);
      const store = await openStore(url, { logger: silentLogger });
      try {
        const before = await store.sandboxes.list();
        expect(before).toHaveLength(dieBefore === afterCommit ? 1 : 0);
        const repeat = async (): Promise<string> =>
          Buffer.from(
            await store.idempotency.once('key', 'CreateSandbox', new Uint8Array([1]), async (tables) => {
              const row = await tables.sandboxes.create(draft({ name: 'once' }));
              await tables.sandboxes.place(row.id, hostId);
              return Buffer.from(row.id);
            }),
          ).toString();
        const answers = [await repeat(), await repeat()];
        const [only, ...others] = await store.sandboxes.list();
        expect(others).toEqual([]);
        expect(answers).toEqual([only?.id, only?.id]);
        if (dieBefore === afterCommit) expect(only?.id).toBe(before[0]?.id);
        expect((await store.hosts.get(hostId))?.reserved.slots).toBe(1);
        const created = (await store.events.after(0, 100)).filter((event) => event.type === 'SandboxCreated');
        expect(created).toHaveLength(1);
      } finally {
        await store.close();
      }
    }
  });
});

describe('several replicas on PostgreSQL', () => {
  const stores = new TestStores('postgres');
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());

  it('L-20: a call that loses its connection before the commit leaves nothing; of two replicas with the same key, one runs the action', async () => {
    const url = await stores.newUrl();
    const [one, two] = [await stores.open({ url }), await stores.open({ url })];
    const host = await readyHost(one);
    const request = new Uint8Array([1]);
    const create = async (store: Store, before: () => Promise<void> = () => Promise.resolve()): Promise<string> =>
      Buffer.from(
        await store.idempotency.once('key', 'CreateSandbox', request, async (tables) => {
          const row = await placeSandbox(tables, await tables.sandboxes.create(draft({ name: 'once' })));
          await before();
          return Buffer.from(row.id);
        }),
      ).toString();
    await expect(create(one, () => stores.postgres.cutConnections())).rejects.toThrow();
    // The pools notice the lost connections when they use them.
    for (let tries = 0; tries < 50; tries++) {
      const listed = await Promise.all([one.sandboxes.list(), two.sandboxes.list()]).catch(() => undefined);
      if (listed === undefined) continue;
      expect(listed).toEqual([[], []]);
      break;
    }
    // The second call arrives after the first has written its key and before it commits, so it waits.
    let second: Promise<string> | undefined;
    const first = await create(one, async () => {
      second = create(two);
      await stores.postgres.untilSomeoneWaits();
    });
    expect(await second).toBe(first);
    expect((await two.sandboxes.list()).map((row) => row.id)).toEqual([first]);
    expect((await two.hosts.get(host.id))?.reserved.slots).toBe(1);
  });

  it('L-28: a commit of one replica wakes the other, also after its connections are lost', async () => {
    const url = await stores.newUrl();
    const [one, two] = [await stores.open({ url }), await stores.open({ url })];
    let wakes = 0;
    two.events.onAppend(() => wakes++);
    const woken = async (): Promise<void> => {
      const before = wakes;
      // Repeated until the notification arrives: LISTEN may not be active yet.
      for (let i = 0; i < 200 && wakes === before; i++) {
        await one.sandboxes.create(draft());
        await new Promise((resolve) => {
          setTimeout(resolve, 25);
        });
      }
      expect(wakes).toBeGreaterThan(before);
    };
    await woken();
    await stores.postgres.cutConnections();
    // The pools notice the lost connections when they use them.
    for (let tries = 0; tries < 50; tries++) {
      const listed = await one.sandboxes.list().catch(() => undefined);
      if (listed !== undefined) break;
    }
    await woken();
  });
});

describe('a store that cannot be opened', () => {
  it('reports the reason in one sentence', async () => {
    await expect(openStore('mysql://x', { logger: silentLogger })).rejects.toMatchObject({ code: 'invalid-config' });
    await expect(openStore('sqlite:/proc/nothing/x.db', { logger: silentLogger })).rejects.toMatchObject({ code: 'unavailable' });
    await expect(openStore('postgres://nobody:secret@/x?host=/nonexistent', { logger: silentLogger })).rejects.toMatchObject({
      code: 'unavailable',
      message: expect.not.stringContaining('secret') as string,
    });
  });
});
