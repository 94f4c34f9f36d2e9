import fc from 'fast-check';
import { expect, test } from 'vitest';
import { OutputText, type TextOrBytes } from './output-text.ts';

function cut(bytes: Buffer, sizes: readonly number[]): TextOrBytes[] {
  const text = new OutputText();
  const records: TextOrBytes[] = [];
  let at = 0;
  for (let i = 0; at < bytes.length; i++) {
    const size = sizes[i % sizes.length] ?? 1;
    const record = text.take(bytes.subarray(at, at + size));
    if (record !== undefined) records.push(record);
    at += size;
  }
  const rest = text.end();
  return rest === undefined ? records : [...records, rest];
}
const sizes = fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 5 });

test('text stays text, wherever it is cut', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), sizes, (text, at) => {
      const records = cut(Buffer.from(text), at);
      expect(records.map(({ data }) => data).join('')).toBe(text);
      expect(records.filter(({ dataBase64 }) => dataBase64 !== undefined)).toEqual([]);
    }),
  );
});

test('any bytes come back, wherever they are cut', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), sizes, (bytes, at) => {
      const records = cut(Buffer.from(bytes), at);
      const back = records.map(({ data, dataBase64 }) =>
        dataBase64 === undefined ? Buffer.from(data) : Buffer.from(dataBase64, 'base64'),
      );
      expect(Buffer.concat(back).equals(bytes)).toBe(true);
    }),
  );
});
