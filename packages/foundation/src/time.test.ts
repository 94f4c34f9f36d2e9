import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Backoff, FakeClock, formatAge, formatBytes } from './index.ts';

describe('backoff', () => {
  test('L-12: full jitter: every delay lies between nothing and the doubled, capped ceiling', () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 1, noNaN: true }), fc.integer({ min: 1, max: 200 }), (random, tries) => {
        const backoff = new Backoff({ baseMs: 500, capMs: 30_000, random: () => random });
        for (let attempt = 0; attempt < tries; attempt++) {
          const ceiling = Math.min(30_000, 500 * 2 ** attempt);
          const delay = backoff.nextMs();
          expect(delay).toBeGreaterThanOrEqual(0);
          expect(delay).toBeLessThanOrEqual(ceiling);
        }
      }),
    );
  });

  test('a reset begins again at the base', () => {
    const backoff = new Backoff({ baseMs: 500, capMs: 30_000, random: () => 1 });
    expect([backoff.nextMs(), backoff.nextMs(), backoff.nextMs()]).toEqual([500, 1000, 2000]);
    backoff.reset();
    expect(backoff.nextMs()).toBe(500);
  });
});

describe('the fake clock', () => {
  test('wakes sleepers at their moment, in order', async () => {
    const clock = new FakeClock(1000);
    const woken: string[] = [];
    const sleepers = [
      clock.sleep(20).then(() => woken.push(`b@${clock.now()}`)),
      clock.sleep(10).then(() => woken.push(`a@${clock.now()}`)),
    ];
    await clock.advance(30);
    await Promise.all(sleepers);
    expect(woken).toEqual(['a@1010', 'b@1020']);
    expect(clock.now()).toBe(1030);
  });

  test('a sleep that is aborted rejects with the reason and leaves no sleeper', async () => {
    const clock = new FakeClock();
    const abort = new AbortController();
    const sleeping = clock.sleep(10, abort.signal);
    abort.abort(new Error('enough'));
    await expect(sleeping).rejects.toThrowError('enough');
    expect(clock.sleeping).toBe(0);
  });
});

test('sizes and ages are written for people', () => {
  expect([formatBytes(900), formatBytes(1536), formatBytes(5 * 1024 ** 3), formatAge(90_000), formatAge(7_300_000)]).toEqual([
    '900 B',
    '1.5 KiB',
    '5.0 GiB',
    '90s',
    '2h',
  ]);
});
