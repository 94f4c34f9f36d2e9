import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BoundedQueue } from './index.ts';

describe('a bounded queue', () => {
  test('full, it refuses with queue-full and keeps what it holds', async () => {
    const queue = new BoundedQueue<number>({ name: 'the queue', capacity: 2 });
    queue.push(1);
    queue.push(2);
    expect(() => queue.push(3)).toThrowError(expect.objectContaining({ code: 'queue-full' }));
    queue.end();
    expect(await Array.fromAsync(queue)).toEqual([1, 2]);
  });

  test('I-36: dropping the oldest, it counts what is lost', async () => {
    const queue = new BoundedQueue<number>({ name: 'the queue', capacity: 2, dropOldest: true });
    for (const item of [1, 2, 3, 4]) queue.push(item);
    expect(queue.takeDropped()).toBe(2);
    expect(queue.takeDropped()).toBe(0);
    queue.end();
    expect(await Array.fromAsync(queue)).toEqual([3, 4]);
  });

  test('a waiting reader gets what comes, then the error it ended with', async () => {
    const queue = new BoundedQueue<number>({ name: 'the queue', capacity: 2 });
    const read: number[] = [];
    const reading = (async () => {
      for await (const item of queue) read.push(item);
    })();
    queue.push(1);
    queue.end(new Error('cut'));
    await expect(reading).rejects.toThrowError('cut');
    expect(read).toEqual([1]);
  });

  test('hands over every item once and in order, whatever the pace of its writer and its reader', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.boolean(), { maxLength: 30 }), async (pauses) => {
        const queue = new BoundedQueue<number>({ name: 'the queue', capacity: 30 });
        const reading = Array.fromAsync(queue);
        for (const [item, pause] of pauses.entries()) {
          queue.push(item);
          if (pause) await new Promise((resolve) => setImmediate(resolve));
        }
        queue.end();
        expect(await reading).toEqual([...pauses.keys()]);
      }),
    );
  });
});
