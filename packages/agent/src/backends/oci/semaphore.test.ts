import { expect, test } from 'vitest';
import { Semaphore } from './semaphore.ts';

const never = new AbortController().signal;
const settled = async (): Promise<void> => await new Promise((resolve) => setImmediate(resolve));

test('admits as many as it has permits, the others in the order in which they came', async () => {
  const semaphore = new Semaphore(2);
  const began: string[] = [];
  const ends = new Map<string, () => void>();
  const begin = async (name: string): Promise<void> => {
    ends.set(name, await semaphore.acquire(never));
    began.push(name);
  };
  for (const name of ['a', 'b', 'c', 'd', 'e']) void begin(name);
  await settled();
  expect(began).toEqual(['a', 'b']);
  ends.get('b')?.();
  // A permit is released once.
  ends.get('b')?.();
  // A newcomer is behind those who wait.
  void begin('f');
  await settled();
  expect(began).toEqual(['a', 'b', 'c']);
  for (const name of ['a', 'c', 'd', 'e']) {
    ends.get(name)?.();
    await settled();
  }
  expect(began).toEqual(['a', 'b', 'c', 'd', 'e', 'f']);
});

test('a waiter that aborts takes no permit', async () => {
  const semaphore = new Semaphore(1);
  const end = await semaphore.acquire(never);
  const impatient = new AbortController();
  const given = semaphore.acquire(impatient.signal);
  const next = semaphore.acquire(never);
  impatient.abort(new Error('enough'));
  await expect(given).rejects.toThrow('enough');
  end();
  (await next)();
  (await semaphore.acquire(never))();
  await expect(semaphore.acquire(impatient.signal)).rejects.toThrow('enough');
});
