import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Tail } from './tail.ts';

function tailOf(limit: number, chunks: readonly Uint8Array[]): string {
  const tail = new Tail(limit);
  for (const chunk of chunks) tail.push(chunk);
  return tail.toString();
}

/** Cuts bytes at the given places. */
function cut(bytes: Buffer, places: readonly number[]): Uint8Array[] {
  const at = [0, ...places.map((place) => place % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return at.slice(1).map((end, i) => bytes.subarray(at[i], end));
}

describe('I-30: the end of a stream', () => {
  it('is whole if it fits', () => {
    expect(tailOf(4, [Buffer.from('ab'), Buffer.from('cd')])).toBe('abcd');
  });

  it('reports the number of truncated bytes', () => {
    expect(tailOf(4, [Buffer.from('abc'), Buffer.from('def')])).toBe('[2 bytes truncated]\ncdef');
  });

  it('does not begin within a character', () => {
    expect(tailOf(4, [Buffer.from('é1ü2')])).toBe('[2 bytes truncated]\n1ü2');
    expect(tailOf(3, [Buffer.from('aé1')])).toBe('[1 bytes truncated]\né1');
    expect(tailOf(2, [Buffer.from('aé1')])).toBe('[3 bytes truncated]\n1');
  });

  it('is the same however it was cut into chunks', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary', maxLength: 200 }),
        fc.array(fc.nat(), { maxLength: 150 }),
        fc.integer({ min: 1, max: 64 }),
        (text, places, limit) => {
          const bytes = Buffer.from(text);
          expect(tailOf(limit, cut(bytes, places))).toBe(tailOf(limit, [bytes]));
        },
      ),
    );
  });

  it('is the end of the input, within the limit, with the number of missing bytes', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: 'grapheme', maxLength: 200 }),
        fc.array(fc.nat(), { maxLength: 20 }),
        fc.integer({ min: 4, max: 64 }),
        (text, places, limit) => {
          const bytes = Buffer.from(text.replaceAll('[', '('));
          const output = tailOf(limit, cut(bytes, places));
          const [, missing = '0', kept = ''] = /^(?:\[(\d+) bytes truncated\]\n)?([^]*)$/.exec(output) ?? [];
          const end = Buffer.from(kept);
          expect(end.byteLength).toBeLessThanOrEqual(limit);
          expect(Number(missing) + end.byteLength).toBe(bytes.byteLength);
          expect(bytes.subarray(bytes.byteLength - end.byteLength).equals(end)).toBe(true);
          // At most one character more than necessary is missing.
          if (Number(missing) > 0) expect(end.byteLength).toBeGreaterThan(limit - 4);
          else expect(bytes.byteLength).toBeLessThanOrEqual(limit);
        },
      ),
    );
  });
});
