import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { DetachKeys } from './detach.ts';

const bytes = (text: string): Uint8Array => Buffer.from(text, 'latin1');
const feedAll = (chunks: readonly string[]): { sent: string; detached: boolean } => {
  const keys = new DetachKeys();
  let sent = '';
  for (const chunk of chunks) {
    const { data, detached } = keys.feed(bytes(chunk));
    sent += Buffer.from(data).toString('latin1');
    if (detached) return { sent, detached };
  }
  return { sent, detached: false };
};

test('R-3: Ctrl-P Ctrl-Q lets go, in one read or in two, and neither key is sent', () => {
  expect(feedAll(['ab\u0010\u0011cd'])).toEqual({ sent: 'ab', detached: true });
  expect(feedAll(['ab\u0010', '\u0011'])).toEqual({ sent: 'ab', detached: true });
  expect(feedAll(['\u0010\u0010\u0011'])).toEqual({ sent: '\u0010', detached: true });
});

test('R-3: everything else goes on as it was typed, but for a Ctrl-P that nothing followed yet', () => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: fc.constantFrom('a', '\u0010', '\u0003', 'é') })), (chunks) => {
      const { sent, detached } = feedAll(chunks);
      expect(detached).toBe(false);
      const whole = chunks.join('');
      expect([whole, whole.slice(0, -1)]).toContain(sent);
    }),
  );
});
