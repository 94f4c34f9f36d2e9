import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { silentLogger } from '@drover/foundation/log';
import { formatPolicy } from '@drover/spec/policy';
import { expect, onTestFinished, test } from 'vitest';
import { networkRecords } from './records.ts';

test('R-17: a record of the first release is read, an unreadable one is removed', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-networks-'));
  onTestFinished(async () => await rm(directory, { recursive: true }));
  const [id, other] = ['sb-0123456789abcdef', 'sb-0123456789abcdeg'];
  const first = { id, slot: 4, pool: '10.213.0.0/16', allow: ['example.com'], cut: true };
  await writeFile(join(directory, `${id}.json`), JSON.stringify(first));
  await writeFile(join(directory, `${other}.json`), JSON.stringify({ ...first, id: other, slot: -1 }));
  const records = networkRecords(directory, silentLogger);
  const [read, ...more] = await records.load();
  expect(more).toEqual([]);
  expect(read).toMatchObject({ id, slot: 4, pool: first.pool, cut: true, unregistered: false });
  expect(JSON.stringify(read === undefined ? '' : formatPolicy(read.policy))).toContain('example.com');
  expect(await readdir(directory)).toEqual([`${id}.json`]);
  if (read === undefined) throw new Error('there is no record');
  await records.put(read);
  expect(await networkRecords(directory, silentLogger).load()).toEqual([read]);
});
