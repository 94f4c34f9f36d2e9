import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { silentLogger } from '@drover/foundation/log';
import { expect, onTestFinished, test } from 'vitest';
import { sandboxRecords } from './record.ts';

/** As the first release wrote it. */
const first = {
  version: 1,
  id: 'sb-0123456789abcdef',
  project: 'default',
  name: 'web',
  spec: { image: 'host', command: ['sleep', '600'], allow: ['example.com'], stopGraceMs: 3_600_000 },
  runtime: 'oci',
  generation: 3,
  phase: 'running',
  reason: '',
  message: '',
  outOfMemory: false,
  startedAt: 1_700_000_000_000,
  startCount: 1,
  imageDigest: 'sha256:00',
  address: '10.213.0.2',
  sequence: 7,
};

test('R-9: a record of the first release is read, with defaults for the fields that it lacks', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-records-'));
  onTestFinished(async () => await rm(directory, { recursive: true }));
  await mkdir(directory, { recursive: true });
  await writeFile(join(directory, `${first.id}.json`), JSON.stringify(first));
  const records = sandboxRecords(directory, silentLogger);
  const [read] = await records.load();
  expect(read).toMatchObject({
    id: first.id,
    phase: 'running',
    startCount: 1,
    exitCode: undefined,
    exitSignal: '',
    oomKills: 0,
    networkCut: false,
    registrationClosed: false,
    bootId: '',
  });
  expect(read?.spec.message).toMatchObject({ image: 'host', allow: ['example.com'] });
  if (read === undefined) throw new Error('there is no record');
  // A later agent reads what this one writes.
  await records.put(read);
  expect(await sandboxRecords(directory, silentLogger).load()).toEqual([read]);
});
