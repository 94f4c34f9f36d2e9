import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { ForeignPaths } from './foreign-paths.ts';

test('work behind other work that hangs is given up at its own deadline', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-foreign-'));
  onTestFinished(async () => await rm(directory, { recursive: true }));
  const foreign = new ForeignPaths();
  const begun = Promise.withResolvers<void>();
  const hanging = new AbortController();
  const first = foreign.inPool(
    directory,
    async () => {
      begun.resolve();
      await new Promise(() => undefined);
    },
    hanging.signal,
  );
  await begun.promise;
  const waiting = new AbortController();
  const second = foreign.inPool(directory, async () => await Promise.resolve('never'), waiting.signal);
  waiting.abort(new Error('too late'));
  await expect(second).rejects.toThrow('too late');
  hanging.abort(new Error('it hangs'));
  await expect(first).rejects.toThrow('it hangs');
});
