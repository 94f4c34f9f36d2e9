import { expect, test } from 'vitest';
import { spawnError } from './spawn.ts';

const failed = (code: string): Error => Object.assign(new Error(`spawn ${code}`), { code });

test.each([
  ['ENOENT', 'command-not-found'],
  ['EACCES', 'command-not-executable'],
  ['ENOEXEC', 'command-not-executable'],
  ['EPERM', 'command-not-executable'],
  ['E2BIG', 'command-not-executable'],
  ['ELIBBAD', 'command-not-executable'],
  ['EAGAIN', 'no-room'],
  ['EMFILE', 'runtime-failed'],
])('%s from execve(2) is %s, and the sentence names the command', (errno, code) => {
  const error = spawnError({ file: '/bin/tool', argv: ['tool'] }, failed(errno));
  expect(error.code).toBe(code);
  if (errno !== 'EMFILE') expect(error.message).toContain('tool');
});

test('a refused capability is named as the reason', () => {
  expect(spawnError({ file: '/bin/ping', argv: ['ping'] }, failed('EPERM')).message).toBe(
    'ping: cannot be executed in the sandbox (its file carries capabilities that a sandbox does not have; `setcap -r` takes them from it)',
  );
});
