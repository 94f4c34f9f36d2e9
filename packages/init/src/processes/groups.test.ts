import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { buildInitBundle } from '../bundle.ts';
import { becomeFlag } from '../own-program.ts';
import { withGroups } from './groups.ts';
import { resolveUser } from './users.ts';

let directory: string;
let bundle: string;
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'drover-groups-'));
  bundle = await buildInitBundle(join(directory, 'init.cjs'));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const become = (
  file: string,
  argv: readonly string[],
  env: NodeJS.ProcessEnv = {},
): { status: number | null; stdout: string; stderr: string } =>
  spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning', bundle, becomeFlag, '1234', '1235', '27,44', file, ...argv], {
    env: { PATH: '/usr/bin:/bin', ...env },
    encoding: 'utf8',
  });

const passwd = 'root:x:0:0::/root:/bin/sh\napp:x:1234:1235::/home/app:/bin/sh\n';
const group = 'root:x:0:\nsudo:x:27:other,app\nvideo:x:44:app\napp:x:1235:app\nother:x:50:applejack\nbad:x:-1:app\n';

it('I-38: a user has the groups of the image’s /etc/group, by name or number, unless one is named', () => {
  expect(resolveUser('app', passwd, group)).toMatchObject({ gid: 1235, groups: [27, 44] });
  expect(resolveUser('1234', passwd, group)).toMatchObject({ gid: 1235, groups: [27, 44] });
  expect(resolveUser('app:video', passwd, group)).toMatchObject({ gid: 44, groups: [] });
  expect(resolveUser('77', passwd, group)).toMatchObject({ groups: [] });
});

it('only who has such groups, and is not root, starts by way of init’s own program', () => {
  const command = { file: '/bin/id', argv: ['id'], env: { PATH: '/bin', NODE_OPTIONS: '--inspect' }, workdir: '/' };
  for (const text of ['root', 'app:video', '77']) {
    const plain = { ...command, user: resolveUser(text, passwd, group) };
    expect(withGroups(plain)).toBe(plain);
  }
  const { argv, env, user } = withGroups({ ...command, user: resolveUser('app', passwd, group) });
  expect(argv.slice(-6)).toEqual([becomeFlag, '1234', '1235', '27,44', '/bin/id', 'id']);
  expect(env).toEqual({ PATH: '/bin', DROVER_BECOME_NODE_OPTIONS: '--inspect' });
  expect(user).toMatchObject({ uid: 0, gid: 0 });
});

it('becomes the program with ids, groups, arguments, environment and signals as if it had been spawned', () => {
  const script = 'echo $0 $1; id -u; id -g; id -G; echo $NODE_OPTIONS; grep -E "^(Uid|Groups|SigIgn|SigBlk|CapEff)" /proc/self/status';
  const { stdout, stderr, status } = become('/bin/sh', ['shell', '-c', script, 'zero', 'one'], { DROVER_BECOME_NODE_OPTIONS: '--x' });
  expect([stderr, status]).toEqual(['', 0]);
  expect(stdout.trimEnd().split('\n')).toEqual([
    'zero one',
    '1234',
    '1235',
    '1235 27 44',
    '--x',
    'Uid:\t1234\t1234\t1234\t1234',
    'Groups:\t27 44 ',
    'SigBlk:\t0000000000000000',
    'SigIgn:\t0000000000000000',
    'CapEff:\t0000000000000000',
  ]);
});

it('a program that the user cannot execute ends with the status of a shell and the reason', () => {
  const [secret, text] = [join(directory, 'secret'), join(tmpdir(), `drover-groups-${process.pid}`)];
  writeFileSync(secret, '#!/bin/sh\n', { mode: 0o700 });
  writeFileSync(text, 'no program', { mode: 0o755 });
  try {
    expect(become(secret, ['secret'])).toMatchObject({ status: 126, stderr: expect.stringContaining('permission denied') as string });
    expect(become(text, ['text'])).toMatchObject({ status: 126, stderr: expect.stringContaining('exec format error') as string });
    expect(become('/no/such', ['such'])).toMatchObject({ status: 127 });
  } finally {
    rmSync(text);
  }
});
