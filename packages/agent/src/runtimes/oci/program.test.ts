import { expect, test } from 'vitest';
import { messageOf } from './program.ts';

test('what a runtime program logs becomes a sentence', () => {
  const line = 'time="2026-11-27T21:17:57Z" level=error msg="runc run failed: failed to write \\"4194320\\":\\ninvalid argument"';
  expect(messageOf(line)).toBe('runc run failed: failed to write "4194320": invalid argument');
  expect(messageOf('cannot open the bundle')).toBe('cannot open the bundle');
  expect(messageOf('msg="\\x00"')).toBe('msg="\\x00"');
});
