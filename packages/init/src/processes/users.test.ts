import { execFileSync } from 'node:child_process';
import { mkdtemp, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { maxAccountBytes } from '../limits.ts';
import { lookUpUser } from './users.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-users-'));
});
afterEach(async () => await rm(directory, { recursive: true }));

test('a user is looked up in the sandbox’s files, also through links', async () => {
  await writeFile(join(directory, 'real'), 'worker:x:1234:77::/home/worker:/bin/sh\n');
  await symlink('real', join(directory, 'passwd'));
  await writeFile(join(directory, 'group'), 'friends:x:88:worker\n');
  expect(lookUpUser('worker', directory)).toEqual({ uid: 1234, gid: 77, groups: [88], home: '/home/worker', name: 'worker' });
});

test.each([
  ['a pipe without a writer', (path: string) => execFileSync('mkfifo', [path])],
  ['a device without an end', async (path: string) => await symlink('/dev/zero', path)],
  [
    'a file that is far too long',
    async (path: string) => {
      await writeFile(path, 'worker:x:1234:77::/:\n');
      await truncate(path, maxAccountBytes + 1);
    },
  ],
])('PID 1 is neither held up nor filled by what the workload puts there: %s', async (_, make) => {
  for (const name of ['passwd', 'group']) await make(join(directory, name));
  expect(lookUpUser('5:6', directory)).toMatchObject({ uid: 5, gid: 6 });
  expect(() => lookUpUser('worker', directory)).toThrow('no user');
});
