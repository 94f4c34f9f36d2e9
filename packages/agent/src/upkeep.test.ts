import { FakeClock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { expect, test, vi } from 'vitest';
import { imageKeptFullDiskMs, imageKeptMs, imageUpkeepMs } from './limits.ts';
import { imageAge, collectImages } from './upkeep.ts';

test.each([
  ['half full', { blocks: 100, bavail: 50 }, imageKeptMs],
  ['nearly full', { blocks: 100, bavail: 5 }, imageKeptFullDiskMs],
])('R-15: on a disk that is %s, unused images are kept so long', (_, disk, age) => {
  expect(imageAge(disk)).toBe(age);
});

test('R-15: images are pruned at the start and then now and then; a failure does not end it', async () => {
  const clock = new FakeClock();
  const end = new AbortController();
  const asked: number[] = [];
  const images = {
    async prune(olderThanMs: number) {
      asked.push(olderThanMs);
      if (asked.length === 1) throw new Error('the disk is gone');
      return await Promise.resolve({ removed: [], freedBytes: 0 });
    },
  };
  const tidying = collectImages({ images: images as never, directory: '/', logger: silentLogger, signal: end.signal, clock });
  for (const round of [1, 2, 3]) {
    await vi.waitFor(() => expect(clock.sleeping).toBe(1));
    expect(asked).toHaveLength(round);
    await clock.advance(imageUpkeepMs);
  }
  end.abort();
  await tidying;
});
