import { expect, test } from 'vitest';
import { parseTail } from './logs.ts';

test('--tail takes 0, as docker does', () => {
  expect([parseTail('0'), parseTail('7')]).toEqual([0, 7]);
  expect(() => parseTail('-1')).toThrowError(/is not a number/);
});
