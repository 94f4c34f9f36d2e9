import { once } from 'node:events';
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { limits } from './limits.ts';
import { logLines } from './output.ts';

async function linesOf(chunks: readonly string[], now?: () => number): Promise<{ lines: string[]; dropped: number }> {
  const stream = new PassThrough();
  const lines: string[] = [];
  let dropped = 0;
  logLines(stream, { write: (line) => lines.push(line), dropped: (count) => (dropped += count) }, now);
  for (const chunk of chunks) stream.write(chunk);
  stream.end();
  await once(stream, 'close');
  return { lines, dropped };
}

test('G-11: lines are cut at their limit, span chunks, and the last one needs no newline', async () => {
  const { lines } = await linesOf(['a', 'b\r\n\n', 'x'.repeat(limits.lineBytes * 3), 'y\nlast']);
  expect(lines).toEqual(['ab', '', `${'x'.repeat(limits.lineBytes)}…`, 'last']);
});

test('G-11: lines beyond the limit of a second are dropped and counted', async () => {
  let now = 0;
  const one = 'line\n'.repeat(limits.linesPerSecond + 3);
  expect((await linesOf([one], () => now)).dropped).toBe(3);
  const { lines, dropped } = await linesOf([one, one], () => (now += 1));
  expect(lines.length + dropped).toBe(2 * (limits.linesPerSecond + 3));
});

test('however the output is cut into chunks, the lines are the same', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.constantFrom('a', 'bc', '\n', 'ü', '\n\n')), async (chunks) => {
      const text = chunks.join('');
      const expected = text.split('\n');
      if (expected.at(-1) === '') expected.pop();
      expect((await linesOf(chunks)).lines).toEqual(expected);
    }),
    { numRuns: 50 },
  );
});
