import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { maxEndedCopies } from '../limits.ts';
import { copyEnded } from './copy-ended.ts';

test('copies out of ended sandboxes are bounded, and one that is given up makes room', async () => {
  const root = await mkdtemp(join(tmpdir(), 'drover-ended-'));
  onTestFinished(async () => await rm(root, { recursive: true }));
  await writeFile(join(root, 'file'), Buffer.alloc(8_000_000));
  const { signal } = new AbortController();
  const wanted = { path: Buffer.from('/file'), followLinks: false };
  const begin = async () => {
    const copy = copyEnded({ path: root, firstId: 0 }, '/', wanted, signal);
    expect(await copy.next()).toMatchObject({ value: { message: { case: 'tar' } } });
    return copy;
  };
  const copies = await Promise.all(Array.from({ length: maxEndedCopies }, begin));
  await expect(begin()).rejects.toMatchObject({ code: 'queue-full' });
  await copies.pop()?.return();
  copies.push(await begin());
  await Promise.all(copies.map(async (copy) => await copy.return()));
});
