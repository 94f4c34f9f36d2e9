import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { ForeignPaths } from './foreign-paths.ts';

test('work that waits for hanging work fails at its own deadline, and work of another kind runs', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-foreign-'));
  onTestFinished(async () => await rm(directory, { recursive: true }));
  const foreign = new ForeignPaths();
  const begun = Promise.withResolvers<void>();
  const hanging = new AbortController();
  const first = foreign.inPool(
    'archive',
    directory,
    async () => {
      begun.resolve();
      await new Promise(() => undefined);
    },
    hanging.signal,
  );
  await begun.promise;
  const waiting = new AbortController();
  const second = foreign.inPool('archive', directory, async () => await Promise.resolve('never'), waiting.signal);
  waiting.abort(new Error('too late'));
  await expect(second).rejects.toThrow('too late');
  expect(await foreign.inPool('root', directory, async () => await Promise.resolve('not held up'))).toBe('not held up');
  hanging.abort(new Error('it hangs'));
  await expect(first).rejects.toThrow('it hangs');
});
