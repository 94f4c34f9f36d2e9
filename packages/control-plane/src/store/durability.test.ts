import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { isSandboxId, silentLogger } from '@drover/foundation';
import { openStore } from './open.ts';
import { draft } from './testing/fixtures.ts';
import { TestStores } from './testing/stores.ts';

describe('what was acknowledged', () => {
  it('is there after kill -9 of the writer (SQLite), with its events, reservation and order', async () => {
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

describe('several replicas on PostgreSQL', () => {
  const stores = new TestStores('postgres');
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());

  it('L-28: a commit of one wakes the other, also after its connections were cut', async () => {
    const url = await stores.newUrl();
    const [one, two] = [await stores.open({ url }), await stores.open({ url })];
    let wakes = 0;
    two.events.onAppend(() => wakes++);
    const woken = async (): Promise<void> => {
      const before = wakes;
      // Written until heard: LISTEN may not stand yet.
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
    // The pools find out as they use what was cut.
    for (let tries = 0; tries < 50; tries++) {
      const listed = await one.sandboxes.list().catch(() => undefined);
      if (listed !== undefined) break;
    }
    await woken();
  });
});

describe('a store that cannot be opened', () => {
  it('says what is wrong in one sentence', async () => {
    await expect(openStore('mysql://x', { logger: silentLogger })).rejects.toMatchObject({ code: 'invalid-config' });
    await expect(openStore('sqlite:/proc/nothing/x.db', { logger: silentLogger })).rejects.toMatchObject({ code: 'unavailable' });
    await expect(openStore('postgres://nobody:secret@/x?host=/nonexistent', { logger: silentLogger })).rejects.toMatchObject({
      code: 'unavailable',
      message: expect.not.stringContaining('secret') as string,
    });
  });
});
