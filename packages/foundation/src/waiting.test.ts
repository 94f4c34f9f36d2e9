import { describe, expect, test } from 'vitest';
import { abortable, FakeClock, withDeadline } from './index.ts';

const forever = new Promise<never>(() => undefined);

describe('abortable', () => {
  test('returns the outcome of the work', async () => {
    const { signal } = new AbortController();
    expect(await abortable(Promise.resolve(1), signal)).toBe(1);
    await expect(abortable(Promise.reject(new Error('broken')), signal)).rejects.toThrow('broken');
  });

  test('rejects with the reason of the signal, before and during the work', async () => {
    const abort = new AbortController();
    const waiting = abortable(forever, abort.signal);
    abort.abort(new Error('enough'));
    await expect(waiting).rejects.toThrow('enough');
    await expect(abortable(Promise.resolve(1), abort.signal)).rejects.toThrow('enough');
  });
});

describe('a deadline', () => {
  test('returns the outcome of work that ends in time, and leaves no timer', async () => {
    const clock = new FakeClock();
    expect(await withDeadline(Promise.resolve(1), 1_000, clock, () => new Error('late'))).toBe(1);
    expect(clock.sleeping).toBe(0);
  });

  test('rejects with the given error when the work takes longer', async () => {
    const clock = new FakeClock();
    const waiting = withDeadline(forever, 1_000, clock, (ms) => new Error(`not in ${ms} ms`));
    const outcome = expect(waiting).rejects.toThrow('not in 1000 ms');
    await clock.advance(1_000);
    await outcome;
  });
});
