import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FileRecords } from './index.ts';
import { silentLogger } from './log.ts';

interface Entry {
  readonly name: string;
  readonly value: number;
}

function parse(stored: unknown): Entry {
  const { name, value } = stored as Partial<Entry>;
  if (typeof name !== 'string' || typeof value !== 'number') throw new TypeError('not an entry');
  return { name, value };
}

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-records-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

const open = (): FileRecords<Entry> => new FileRecords({ directory, key: ({ name }) => name, parse, sync: false, logger: silentLogger });

describe('file records', () => {
  test('are the same after a restart, whatever was written and removed', async () => {
    const change = fc.record({ name: fc.constantFrom('a', 'b', 'c'), value: fc.option(fc.integer()) });
    await fc.assert(
      fc.asyncProperty(fc.array(change, { maxLength: 10 }), async (changes) => {
        const records = open();
        await records.load();
        const expected = new Map(records.all().map((entry) => [entry.name, entry]));
        for (const { name, value } of changes) {
          if (value === null) {
            expected.delete(name);
            await records.delete(name);
          } else {
            expected.set(name, { name, value });
            await records.put({ name, value });
          }
        }
        const byName = (entries: Iterable<Entry>): Entry[] => [...entries].sort((a, b) => (a.name < b.name ? -1 : 1));
        expect(byName(records.all())).toEqual(byName(expected.values()));
        expect(byName(await open().load())).toEqual(byName(expected.values()));
        for (const name of ['a', 'b', 'c']) expect(records.get(name)).toEqual(expected.get(name));
      }),
      { numRuns: 30 },
    );
  });

  test('that cannot be read are removed, with everything else that is no record', async () => {
    await open().put({ name: 'good', value: 1 });
    await writeFile(join(directory, 'cut.json'), '{"name":"cut"');
    await writeFile(join(directory, 'foreign.json'), '{"other":1}');
    await writeFile(join(directory, 'renamed.json'), '{"name":"other","value":1}');
    await writeFile(join(directory, '.good.json.0123.tmp'), '{}');
    await mkdir(join(directory, 'folder.json'));
    expect(await open().load()).toEqual([{ name: 'good', value: 1 }]);
    expect(await readdir(directory)).toEqual(['good.json']);
  });

  test('take the file name and the stored form that their owner chooses', async () => {
    const options = { directory, key: ({ name }: Entry) => name, logger: silentLogger };
    const hex = (key: string): string => Buffer.from(key).toString('hex');
    const format = ({ name, value }: Entry): unknown => [name, value];
    const parseList = (stored: unknown): Entry => parse({ name: (stored as unknown[])[0], value: (stored as unknown[])[1] });
    await new FileRecords({ ...options, fileName: hex, format, parse: parseList }).put({ name: '../x/y', value: 2 });
    expect(await readdir(directory)).toEqual([`${hex('../x/y')}.json`]);
    expect(await new FileRecords({ ...options, fileName: hex, format, parse: parseList }).load()).toEqual([{ name: '../x/y', value: 2 }]);
  });
});
