import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { link } from '@drover/protocol';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { readKeptLogs } from './logs.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-logs-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

const line = (text: string, s: 1 | 2 = 1): string => `${JSON.stringify({ s, t: 5, d: Buffer.from(text).toString('base64') })}\n`;
const textsOf = (data: link.LogData): readonly string[] => data.records.map((record) => Buffer.from(record.data).toString());

describe('the kept logs of a sandbox', () => {
  test('R-9: both files are read, oldest first, each record with its stream and time', async () => {
    await writeFile(join(directory, 'log.1'), line('one'));
    await writeFile(join(directory, 'log'), line('two', 2));
    const data = await readKeptLogs(directory, 0);
    expect(textsOf(data)).toEqual(['one', 'two']);
    expect(data.records[1]).toMatchObject({ stream: link.LogRecord_Stream.STDERR, time: { seconds: 0n, nanos: 5_000_000 } });
  });

  test('a tail takes the newest records that fit', async () => {
    await writeFile(join(directory, 'log'), line('aaaa') + line('bbbb') + line('cccc'));
    expect(textsOf(await readKeptLogs(directory, 8))).toEqual(['bbbb', 'cccc']);
  });

  test('what the sandbox wrote instead of records is passed over: garbage, a cut line, other types', async () => {
    await writeFile(join(directory, 'log'), `garbage\n{"s":3}\n${line('good')}{"s":1,"t":5,"d":"YW`);
    expect(textsOf(await readKeptLogs(directory, 0))).toEqual(['good']);
  });

  test('a link that the sandbox put in place of the file is not followed', async () => {
    await writeFile(join(directory, 'secret'), line('secret'));
    await symlink(join(directory, 'secret'), join(directory, 'log'));
    expect(textsOf(await readKeptLogs(directory, 0))).toEqual([]);
  });

  test('no log is no output', async () => {
    expect(textsOf(await readKeptLogs(directory, 0))).toEqual([]);
  });
});
