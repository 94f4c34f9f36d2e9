import { readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DroverError } from '@drover/foundation';
import { openOciHarness, type OciHarness } from '../testing/oci-harness.ts';
import type { CreateRequest } from '../runtime.ts';
import { layoutOf } from './layout.ts';

describe('a sandbox whose run directory is completed while it is started', () => {
  let harness: OciHarness;
  const lifetime = (): AbortSignal => AbortSignal.timeout(20_000);

  beforeAll(async () => {
    harness = await openOciHarness('runc');
  });
  afterAll(async () => {
    await harness.close();
  });

  /** The request without its config, and the config. */
  const incomplete = async (argv: readonly string[]): Promise<{ request: CreateRequest; path: string; config: string }> => {
    const request = await harness.requestOf(argv);
    const path = join(request.runDirectory, 'config.json');
    const config = await readFile(path, 'utf8');
    await rm(path);
    return { request, path, config };
  };
  const until = async (condition: () => Promise<boolean>): Promise<void> => {
    const signal = lifetime();
    while (!(await condition())) {
      signal.throwIfAborted();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  };
  const isThere = async (path: string): Promise<boolean> =>
    await stat(path).then(
      () => true,
      () => false,
    );

  test('I-6: waits for it, is given the files before it goes on, and goes on when that is on record', async () => {
    const { request, path, config } = await incomplete(['/bin/sh', '-c', 'exit 5']);
    const completed = Promise.withResolvers<void>();
    const recorded = Promise.withResolvers<void>();
    const exit = join(request.runDirectory, 'exit.json');
    let owner: number | undefined;
    const opening = async (): Promise<void> => {
      owner = (await stat(path)).uid;
      await recorded.promise;
    };
    const made = harness.runtime.create({ ...request, gate: { completed: completed.promise, opening } }, lifetime());
    await until(async () => await isThere(layoutOf(harness.stateDirectory, request.id).pidFile));
    await writeFile(path, config, { mode: 0o400 });
    completed.resolve();
    await until(() => Promise.resolve(owner !== undefined));
    expect(owner).toBe((await stat(request.runDirectory)).uid);
    expect(owner).not.toBe(0);
    expect(await isThere(exit)).toBe(false);
    recorded.resolve();
    await made;
    await harness.runtime.waitExit(request.id, lifetime());
    expect(await harness.runtime.inspect(request.id)).toMatchObject({ phase: 'ended', exitCode: 5 });
    await harness.runtime.destroy(request.id);
  });

  test('R-9: is not made when that is given up, and nothing of it is left', async () => {
    const { request } = await incomplete(['/bin/true']);
    const refusal = new DroverError('permission-denied', 'not placed on this host');
    const gate = { completed: Promise.reject(refusal), opening: async () => await Promise.reject(new Error('it opened')) };
    gate.completed.catch(() => undefined);
    await expect(harness.runtime.create({ ...request, gate }, lifetime())).rejects.toBe(refusal);
    expect(await harness.leftovers(request.id)).toEqual([]);
  });

  test('R-9: ends by itself when a later start is given up', async () => {
    const request = await harness.requestOf(['/bin/true']);
    await harness.runtime.create(request, lifetime());
    await harness.runtime.waitExit(request.id, lifetime());
    await rm(join(request.runDirectory, 'config.json'), { force: true });
    const gate = { completed: Promise.reject(new Error('refused')), opening: async () => await Promise.reject(new Error('it opened')) };
    gate.completed.catch(() => undefined);
    await expect(harness.runtime.start({ ...request, gate }, lifetime())).rejects.toThrow('refused');
    await until(async () => (await harness.runtime.inspect(request.id))?.phase === 'ended');
    await harness.runtime.destroy(request.id);
  });
});
