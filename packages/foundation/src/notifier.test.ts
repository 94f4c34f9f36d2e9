import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FakeClock, Notifier } from './index.ts';

describe('a notifier', () => {
  test('ends the next wait for any number of notifications before it, and only that one', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 5 }), async (count) => {
        const clock = new FakeClock();
        const notifier = new Notifier(clock);
        for (let time = 0; time < count; time++) notifier.notify();
        await notifier.wait();
        const second = notifier.wait(undefined, 1_000).then(() => clock.now());
        await clock.advance(2_000);
        expect(await second).toBe(1_000);
      }),
    );
  });

  test('ends a wait that is under way, and its timer with it', async () => {
    const clock = new FakeClock();
    const notifier = new Notifier(clock);
    const waiting = notifier.wait(new AbortController().signal, 1_000);
    notifier.notify();
    await waiting;
    await clock.advance(0);
    expect(clock.sleeping).toBe(0);
  });

  test('rejects with the reason of the signal, before and during a wait', async () => {
    const notifier = new Notifier();
    const abort = new AbortController();
    const waiting = notifier.wait(abort.signal);
    abort.abort(new Error('enough'));
    await expect(waiting).rejects.toThrow('enough');
    notifier.notify();
    await expect(notifier.wait(abort.signal)).rejects.toThrow('enough');
  });
});
