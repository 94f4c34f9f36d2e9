import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Backoff, FakeClock, formatAge, formatBytes, parseBytes, parseCpus, parseDurationMs } from './index.ts';

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

describe('units', () => {
  test.each([
    ['512m', 512 * 1024 ** 2],
    ['1.5g', 1.5 * 1024 ** 3],
    ['2GiB', 2 * 1024 ** 3],
    ['100', 100],
  ])('%s is %d bytes', (text, bytes) => {
    expect(parseBytes(text)).toBe(bytes);
  });

  test.each(['', '0', '-1', '1x', 'g', '1e9', '9999999999t'])('%j is not a size', (text) => {
    expect(() => parseBytes(text)).toThrowError(/is not a size/);
  });

  test.each([
    ['.5', 500],
    ['2', 2000],
    ['0.5', 500],
    ['250m', 250],
  ])('%s CPUs are %d thousandths', (text, millis) => {
    expect(parseCpus(text)).toBe(millis);
  });

  test.each(['', '0', '-1', 'x', '1.5.5', '2000'])('%j is not a number of CPUs', (text) => {
    expect(() => parseCpus(text)).toThrowError(/is not a number of CPUs/);
  });

  test.each([
    ['90', 90_000],
    ['1h30m', 5_400_000],
    ['500ms', 500],
  ])('%s is %d ms', (text, ms) => {
    expect(parseDurationMs(text)).toBe(ms);
  });

  test.each(['', 'soon', '1h 30', '-5s', 'm5'])('%j is not a duration', (text) => {
    expect(() => parseDurationMs(text)).toThrowError(/is not a duration/);
  });

  test('for people', () => {
    expect([formatBytes(900), formatBytes(1536), formatBytes(5 * 1024 ** 3), formatAge(90_000), formatAge(7_300_000)]).toEqual([
      '900 B',
      '1.5 KiB',
      '5.0 GiB',
      '90s',
      '2h',
    ]);
  });
});
