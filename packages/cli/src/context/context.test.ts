import { mkdir, mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DroverError } from '@drover/foundation';
import { loadContext, withContextName } from './context.ts';
import { contextNames, currentContext, listContexts, nameFor, removeContext, saveContext, useContext, type NamedContext } from './store.ts';

let directory: string;
let env: NodeJS.ProcessEnv;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-context-'));
  env = { XDG_CONFIG_HOME: directory };
});
afterEach(() => rm(directory, { recursive: true }));

const local: NamedContext = {
  name: 'local',
  server: 'https://127.0.0.1:7443',
  token: 'drvt_secret',
  caPem: '-----BEGIN CERTIFICATE-----\n',
};
const { name: _, ...kept } = local;
const other = { server: 'https://prod.example:7443', token: 'drvt_other' };

/** Saves `local` as the current context. */
async function keepLocal(): Promise<void> {
  await saveContext(env, local);
  await useContext(env, 'local');
}

/** What earlier versions wrote. */
async function writeLegacy(text: string): Promise<void> {
  await mkdir(join(directory, 'drover'));
  await writeFile(join(directory, 'drover', 'context.json'), text);
}

test('the current context is used, and only its owner can read it', async () => {
  await keepLocal();
  expect(await loadContext(env, {})).toEqual(kept);
  expect((await stat(join(directory, 'drover', 'contexts', 'local.json'))).mode & 0o777).toBe(0o600);
});

describe('which control plane a command goes to', () => {
  beforeEach(async () => {
    await keepLocal();
    await saveContext(env, { name: 'prod', ...other });
  });

  test.each([
    ['the current context', {}, {}, kept],
    ['DROVER_CONTEXT', { DROVER_CONTEXT: 'prod' }, {}, other],
    ['--context', { DROVER_CONTEXT: 'local' }, { context: 'prod' }, other],
    [
      'DROVER_SERVER before DROVER_CONTEXT',
      { DROVER_SERVER: 'a', DROVER_TOKEN: 't', DROVER_CONTEXT: 'prod' },
      {},
      { server: 'https://a:7443', token: 't' },
    ],
    ['--context before DROVER_SERVER and its token', { DROVER_SERVER: 'a', DROVER_TOKEN: 't' }, { context: 'prod' }, other],
    ['--server before DROVER_CONTEXT', { DROVER_CONTEXT: 'prod' }, { server: 'a', token: 't' }, { server: 'https://a:7443', token: 't' }],
    ['DROVER_TOKEN before the token of the context', { DROVER_TOKEN: 'theirs' }, {}, { ...kept, token: 'theirs' }],
    ['--token before DROVER_TOKEN', { DROVER_TOKEN: 'theirs' }, { token: 'mine' }, { ...kept, token: 'mine' }],
    ['the token and CA of a context whose server is named', {}, { server: '127.0.0.1:7443' }, kept],
  ])('%s', async (_name, variables, flags, expected) => {
    expect(await loadContext({ ...env, ...variables }, flags)).toEqual(expected);
  });

  test('the token of a context goes to its own server alone', async () => {
    await expect(loadContext(env, { server: 'elsewhere.example' })).rejects.toMatchObject({ code: 'unauthenticated' });
  });

  test('--server and --context together are refused', async () => {
    await expect(loadContext(env, { server: 'a', context: 'prod' })).rejects.toMatchObject({ code: 'invalid-argument' });
  });

  test.each([
    ['the current context', {}, {}, 'down (context local)', 'start it; other contexts exist: prod (drover context ls)'],
    ['--context', {}, { context: 'prod' }, 'down (context prod)', 'start it; other contexts exist: local (drover context ls)'],
    [
      'a server without a context',
      { DROVER_SERVER: 'elsewhere.example' },
      {},
      'down',
      'start it; other contexts exist: local, prod (drover context ls)',
    ],
  ])('an unreachable control plane of %s: its context and the others are named', async (_name, variables, flags, message, hint) => {
    const down = new DroverError('control-plane-unreachable', 'down', { hint: 'start it' });
    expect(await withContextName(down, { ...env, ...variables }, flags)).toMatchObject({ code: down.code, message, hint });
  });

  test('an unknown context is refused with the names that exist', async () => {
    await expect(loadContext(env, { context: 'nosuch' })).rejects.toMatchObject({
      code: 'context-not-found',
      hint: 'the contexts are local, prod',
    });
  });

  test('a context that was the current one and is removed leaves none', async () => {
    await removeContext(env, 'local');
    expect([await contextNames(env), await currentContext(env)]).toEqual([['prod'], undefined]);
    await expect(loadContext(env, {})).rejects.toMatchObject({ code: 'failed-precondition' });
  });
});

describe('a file of a version without names', () => {
  beforeEach(() => writeLegacy(JSON.stringify(kept)));

  test('is the context default, and the current one', async () => {
    expect(await listContexts(env)).toEqual([{ name: 'default', ...kept }]);
    expect(await currentContext(env)).toBe('default');
    expect(await loadContext(env, {})).toEqual(kept);
  });

  test('stays beside new ones, and can be gone back to', async () => {
    await saveContext(env, { name: 'local-2', ...other });
    await useContext(env, 'local-2');
    expect(await loadContext(env, {})).toEqual(other);
    await useContext(env, 'default');
    expect(await loadContext(env, {})).toEqual(kept);
  });

  test('can be removed', async () => {
    await removeContext(env, 'default');
    expect([await contextNames(env), await currentContext(env)]).toEqual([[], undefined]);
  });
});

test.each([
  ['its CA, at a new address', { server: 'https://127.0.0.1:9', token: 't', caPem: local.caPem ?? '' }, 'local'],
  ['its address, with a new CA', { server: local.server, token: 't', caPem: 'new' }, 'local'],
  ['neither', { server: 'https://127.0.0.1:9', token: 't', caPem: 'new' }, 'local-2'],
])('up finds the context of a control plane again by %s', (_name, context, name) => {
  expect(nameFor([local], context)).toBe(name);
});

test.each([
  ['nothing names a control plane', undefined, {}, 'failed-precondition'],
  ['the file is no JSON', '{', {}, 'invalid-config'],
  ['the file lacks a token', '{"server":"https://a:1"}', {}, 'invalid-config'],
  ['the CA file is absent', undefined, { server: 'a', token: 'b', ca: '/nonexistent' }, 'invalid-config'],
  ['the CA file holds no certificate', undefined, { server: 'a', token: 'b', ca: '/dev/null' }, 'invalid-config'],
  ['the name of a context leads elsewhere', undefined, { context: '../x' }, 'invalid-argument'],
] as const)('one sentence when %s', async (_name, text, flags, code) => {
  if (text !== undefined) await writeLegacy(text);
  await expect(loadContext(env, flags)).rejects.toMatchObject({ code });
});
