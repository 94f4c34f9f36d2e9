import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { loadContext, saveContext } from './context.ts';

let directory: string;
let env: NodeJS.ProcessEnv;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-context-'));
  env = { XDG_CONFIG_HOME: directory };
});
afterEach(() => rm(directory, { recursive: true }));

const kept = { server: 'https://127.0.0.1:7443', token: 'drvt_secret', caPem: '-----BEGIN CERTIFICATE-----\n' };

test('what `up` wrote is found again, and nobody else can read it', async () => {
  const path = await saveContext(env, kept);
  expect(await loadContext(env, {})).toEqual(kept);
  expect((await stat(path)).mode & 0o777).toBe(0o600);
});

test('flags go before the environment, and that before the file', async () => {
  await saveContext(env, kept);
  expect((await loadContext({ ...env, DROVER_TOKEN: 'theirs' }, {})).token).toBe('theirs');
  expect((await loadContext({ ...env, DROVER_TOKEN: 'theirs' }, { token: 'mine' })).token).toBe('mine');
});

test('the file’s token and CA go to the file’s server alone', async () => {
  await saveContext(env, kept);
  await expect(loadContext(env, { server: 'elsewhere.example' })).rejects.toMatchObject({ code: 'unauthenticated' });
  const other = await loadContext(env, { server: 'elsewhere.example', token: 'theirs' });
  expect(other).toEqual({ server: 'https://elsewhere.example:7443', token: 'theirs' });
  expect(await loadContext(env, { server: '127.0.0.1:7443' })).toEqual(kept);
});

test.each([
  ['nothing says where it is', undefined, {}, 'failed-precondition'],
  ['the file is no JSON', '{', {}, 'invalid-config'],
  ['the file lacks a token', '{"server":"https://a:1"}', {}, 'invalid-config'],
  ['the CA file is not there', undefined, { server: 'a', token: 'b', ca: '/nonexistent' }, 'invalid-config'],
  ['the CA file holds no certificate', undefined, { server: 'a', token: 'b', ca: '/dev/null' }, 'invalid-config'],
] as const)('one sentence when %s', async (_, text, flags, code) => {
  if (text !== undefined) {
    const path = await saveContext(env, kept);
    await writeFile(path, text);
  }
  await expect(loadContext(env, flags)).rejects.toMatchObject({ code });
});
