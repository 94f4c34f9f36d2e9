import { expect, test } from 'vitest';
import { Turns } from './turns.ts';

const never = new AbortController().signal;
const settled = async (): Promise<void> => await new Promise((resolve) => setImmediate(resolve));

test('so many at once, the others in the order in which they came', async () => {
  const turns = new Turns(2);
  const began: string[] = [];
  const ends = new Map<string, () => void>();
  const begin = async (name: string): Promise<void> => {
    ends.set(name, await turns.take(never));
    began.push(name);
  };
  for (const name of ['a', 'b', 'c', 'd', 'e']) void begin(name);
  await settled();
  expect(began).toEqual(['a', 'b']);
  ends.get('b')?.();
  // A turn ends once.
  ends.get('b')?.();
  // Who comes now is behind those who wait.
  void begin('f');
  await settled();
  expect(began).toEqual(['a', 'b', 'c']);
  for (const name of ['a', 'c', 'd', 'e']) {
    ends.get(name)?.();
    await settled();
  }
  expect(began).toEqual(['a', 'b', 'c', 'd', 'e', 'f']);
});

test('who gives up waiting takes no turn', async () => {
  const turns = new Turns(1);
  const end = await turns.take(never);
  const impatient = new AbortController();
  const given = turns.take(impatient.signal);
  const next = turns.take(never);
  impatient.abort(new Error('enough'));
  await expect(given).rejects.toThrow('enough');
  end();
  (await next)();
  (await turns.take(never))();
  await expect(turns.take(impatient.signal)).rejects.toThrow('enough');
});
