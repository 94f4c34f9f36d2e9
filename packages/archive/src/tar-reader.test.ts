import fc from 'fast-check';
import { expect, test } from 'vitest';
import { TarParser } from './tar-reader.ts';
import { tarEnd, tarHeader, tarPadding, type TarHeader } from './tar-writer.ts';

const common = { mode: 0o644, uid: 1, gid: 2, mtimeNs: 1_500_000_000_123_456_789n } as const;

function entry(header: Pick<TarHeader, 'name'> & Partial<TarHeader>, data = Buffer.alloc(0)): Buffer {
  return Buffer.concat([tarHeader({ ...common, type: 'file', size: data.length, ...header }), data, tarPadding(data.length)]);
}

/** An entry whose PAX header has one more record. */
function withRecord(key: string, value: string): Buffer {
  const name = 'n'.repeat(120);
  const plain = entry({ name, attributes: new Map([['user.placeholder', Buffer.from(value)]]) });
  const text = plain.toString('latin1').replace('SCHILY.xattr.user.placeholder', key.padEnd('SCHILY.xattr.user.placeholder'.length, 'x'));
  return Buffer.from(text, 'latin1');
}

function events(chunks: readonly Buffer[]): unknown[] {
  const seen: unknown[] = [];
  let data = '';
  const parser = new TarParser({
    entry: (each) => void seen.push({ ...each, attributes: [...each.attributes] }),
    data: (chunk) => (data += chunk.toString('latin1')),
    end: () => {
      seen.push(data);
      data = '';
    },
  });
  for (const chunk of chunks) parser.write(Buffer.from(chunk));
  parser.end();
  return seen;
}

const sparse = {
  realSize: 5000,
  segments: [
    { offset: 0, size: 100 },
    { offset: 4000, size: 30 },
  ],
};
const archive = Buffer.concat([
  entry({ name: 'short' }, Buffer.from('content')),
  entry({ name: `long/${'é'.repeat(90)}`, attributes: new Map([['user.a', Buffer.from([0, 0x80, 10])]]) }, Buffer.alloc(1300, 7)),
  entry({ name: 'sparse', sparse }, Buffer.alloc(130, 9)),
  entry({ name: 'directory/', type: 'directory' }),
  entry({ name: 'link', type: 'symlink', linkName: 't'.repeat(200) }),
  tarEnd,
]);

test('an archive is the same in chunks of any sizes', () => {
  const whole = events([archive]);
  expect(whole).toHaveLength(10);
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 1500 }), { minLength: 1, maxLength: 40 }), (sizes) => {
      const chunks: Buffer[] = [];
      for (let at = 0, i = 0; at < archive.length; at += sizes[i++ % sizes.length] ?? 1)
        chunks.push(archive.subarray(at, at + (sizes[i % sizes.length] ?? 1)));
      expect(events(chunks)).toEqual(whole);
    }),
  );
});

test('an archive that ends in a header or in data is corrupt; its trailer and last padding may be absent', () => {
  const only = entry({ name: 'only', mtimeNs: 0n }, Buffer.from('content'));
  for (const length of [100, 511, 512, 518]) {
    expect(() => events([only.subarray(0, length)]), String(length)).toThrow(expect.objectContaining({ code: 'corrupt-image' }));
  }
  for (const length of [519, 600, 1024]) expect(events([only.subarray(0, length)]), String(length)).toHaveLength(2);
  const extended = entry({ name: 'n'.repeat(300), mtimeNs: 0n });
  expect(() => events([extended.subarray(0, 1024)])).toThrow(expect.objectContaining({ code: 'corrupt-image' }));
});

test('the name of an attribute that is not percent-encoded correctly is corrupt', () => {
  expect(() => events([withRecord('LIBARCHIVE.xattr.user.%zz', 'AA==')])).toThrow(expect.objectContaining({ code: 'corrupt-image' }));
  expect(events([withRecord('LIBARCHIVE.xattr.user.%2d', 'AA==')])[0]).toMatchObject({
    attributes: [[expect.stringMatching(/^user\.-x*$/), Buffer.from([0])]],
  });
});
