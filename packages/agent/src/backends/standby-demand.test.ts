import fc from 'fast-check';
import { expect, test } from 'vitest';
import { maxDefaultStandbys, standbyBurstMs, standbyDemandMs } from '../limits.ts';
import { defaultStandbys, standbyRange, standbyTarget } from './standby-demand.ts';

const day = 86_400_000;
const burst = (count: number, at: number): number[] => Array.from({ length: count }, (_, i) => at + i);

test.each([
  ['a host that has just started expects the largest burst', [], 0, 1_000, 8],
  ['a quiet host keeps a quarter', [], 0, day, 2],
  ['a recent burst raises the number', burst(5, day - 20_000), 0, day, 5],
  ['a burst beyond the memory set aside raises it to the most', burst(50, day - 20_000), 0, day, 8],
  ['an old burst does not count', burst(5, day - standbyDemandMs - 10), 0, day, 2],
  ['creates far apart are no burst', [5, 4, 3, 2, 1].map((each) => day - each * standbyBurstMs), 0, day, 2],
  ['the largest of several bursts counts', [...burst(3, day - 300_000), ...burst(6, day - 200_000), ...burst(4, day - 9_000)], 0, day, 6],
])('%s', (_, creates, openedAt, now, expected) => {
  expect(standbyTarget(creates, openedAt, now, standbyRange(8))).toBe(expected);
});

test('the number stays within the range, and a further create never lowers it', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(2 * standbyDemandMs), { maxLength: 100 }), fc.nat(64), (gaps, most) => {
      const range = standbyRange(most);
      const creates = gaps.toSorted((a, b) => a - b).map((at) => at + day);
      const now = day + 2 * standbyDemandMs;
      const target = standbyTarget(creates, 0, now, range);
      expect(target).toBeGreaterThanOrEqual(range.least);
      expect(target).toBeLessThanOrEqual(range.most);
      expect(standbyTarget([...creates, now], 0, now, range)).toBeGreaterThanOrEqual(target);
      expect(standbyTarget([...creates, now], 0, now + 2 * standbyDemandMs, range)).toBe(range.least);
    }),
  );
});

test('the default is one for each 2 GiB of memory, and at most 16', () => {
  fc.assert(
    fc.property(fc.nat(2 ** 42), (memory) => {
      expect(defaultStandbys(memory)).toBe(Math.min(maxDefaultStandbys, Math.floor(memory / 2 ** 31)));
    }),
  );
});
