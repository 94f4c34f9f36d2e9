import { lstat, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { newSandboxId } from '@drover/foundation';
import { makeRunDirectory, runDirectoryOf, writeStartMaterial, type StartMaterial } from './run-directory.ts';

const id = newSandboxId();
let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-run-directory-'));
});
afterEach(async () => await rm(directory, { recursive: true }));

const material: StartMaterial = {
  sandboxId: 'sb-0000000000000000',
  project: '',
  name: 'a',
  hostname: 'a',
  control: { host: '10.0.0.1', port: 1 },
  address: '10.0.0.2',
  controlPlaneUri: 'spiffe://test/control-plane',
  main: { argv: ['sh'], env: [], workdir: '', user: '', terminal: false, rows: 0, columns: 0, stdin: false, stopSignal: 15 },
  secrets: [],
  stopGraceMs: 0,
  idleStopMs: 0,
  startCount: 2,
  certificatePem: 'certificate',
  keyPem: 'key',
  caPem: 'ca',
  bootstrapToken: 'token',
};

test('I-6: what an earlier start of the sandbox put in the way is gone, and nothing is written or removed through it', async () => {
  const run = runDirectoryOf(directory, id);
  await mkdir(run, { recursive: true });
  const [victim, victims] = [join(directory, 'victim'), join(directory, 'victims')];
  await writeFile(victim, 'mine');
  await mkdir(victims);
  await writeFile(join(victims, 'file'), 'mine');
  await mkdir(join(run, 'config.json/deep'), { recursive: true });
  await mkdir(join(run, 'exit.json'));
  await symlink(victims, join(run, 'key.pem'));
  await symlink(victim, join(run, 'token'));
  await symlink(victims, join(run, 'exit.json/link'));
  await writeFile(join(run, 'log'), 'kept');
  for (let i = 0; i < 500; i++) await writeFile(join(run, `more-${i}`), '');

  await makeRunDirectory(directory, id, 0);
  expect(await readdir(run)).toEqual(['log']);
  await writeStartMaterial(run, material);
  for (const name of ['config.json', 'ca.pem', 'cert.pem', 'key.pem', 'token']) {
    const found = await lstat(join(run, name));
    expect([name, found.isFile(), found.mode & 0o777]).toEqual([name, true, 0o400]);
  }
  expect(await readFile(victim, 'utf8')).toBe('mine');
  expect(await readFile(join(victims, 'file'), 'utf8')).toBe('mine');
});

test('I-6: what appears in the place of a file while the start is made is not written through', async () => {
  const run = runDirectoryOf(directory, id);
  await makeRunDirectory(directory, id, 0);
  expect((await stat(run)).mode & 0o777).toBe(0o700);
  await symlink(join(directory, 'elsewhere'), join(run, 'key.pem'));
  await expect(writeStartMaterial(run, material)).rejects.toThrow('EEXIST');
  await expect(stat(join(directory, 'elsewhere'))).rejects.toThrow('ENOENT');
  await expect(stat(join(run, 'config.json'))).rejects.toThrow('ENOENT');
});
