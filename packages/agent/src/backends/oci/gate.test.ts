import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DroverError } from '@drover/foundation';
import { openOciHarness, type OciHarness } from '../testing/oci-harness.ts';
import type { StartRequest } from '../backend.ts';
import { layoutOf } from './layout.ts';

describe('a sandbox whose run directory is completed while its init is started', () => {
  let harness: OciHarness;
  const lifetime = (): AbortSignal => AbortSignal.timeout(20_000);

  beforeAll(async () => {
    harness = await openOciHarness('runc');
  });
  afterAll(async () => {
    await harness.close();
  });

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

  test('I-6: waits for it, owns the files before it continues, and continues when the start is on record', async () => {
    const request = await harness.requestOf(['/bin/sh', '-c', 'exit 5']);
    const path = join(request.runDirectory, 'config.json');
    const recorded = Promise.withResolvers<void>();
    const exit = join(request.runDirectory, 'exit.json');
    let owner: number | undefined;
    const complete: StartRequest['complete'] = async (prepared, signal) => {
      await until(async () => await isThere(layoutOf(harness.stateDirectory, request.id).pidFile));
      await request.complete(prepared, signal);
    };
    const opening = async (): Promise<void> => {
      owner = (await stat(path)).uid;
      await recorded.promise;
    };
    const made = harness.backend.create({ ...request, complete, opening }, lifetime());
    await until(() => Promise.resolve(owner !== undefined));
    expect(owner).toBe((await stat(request.runDirectory)).uid);
    expect(owner).not.toBe(0);
    expect(await isThere(exit)).toBe(false);
    recorded.resolve();
    await made;
    await harness.backend.waitExit(request.id, lifetime());
    expect(await harness.backend.inspect(request.id)).toMatchObject({ phase: 'ended', exitCode: 5 });
    await harness.backend.destroy(request.id);
  });

  test('R-9: is not made when that fails, and nothing of it is left', async () => {
    const request = await harness.requestOf(['/bin/true']);
    const refusal = new DroverError('permission-denied', 'not placed on this host');
    const complete = async (): Promise<never> => await Promise.reject(refusal);
    const opening = async (): Promise<never> => await Promise.reject(new Error('it opened'));
    await expect(harness.backend.create({ ...request, complete, opening }, lifetime())).rejects.toBe(refusal);
    expect(await harness.leftovers(request.id)).toEqual([]);
  });

  test('R-9: ends when that fails at a later start', async () => {
    const request = await harness.requestOf(['/bin/true']);
    await harness.backend.create(request, lifetime());
    await harness.backend.waitExit(request.id, lifetime());
    const complete = async (): Promise<never> => await Promise.reject(new Error('refused'));
    const opening = async (): Promise<never> => await Promise.reject(new Error('it opened'));
    await expect(harness.backend.start({ ...request, complete, opening }, lifetime())).rejects.toThrow('refused');
    await until(async () => (await harness.backend.inspect(request.id))?.phase === 'ended');
    await harness.backend.destroy(request.id);
  });
});
