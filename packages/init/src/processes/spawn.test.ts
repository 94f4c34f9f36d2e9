import { readdirSync } from 'node:fs';
import { expect, onTestFinished, test, vi } from 'vitest';
import { ptyAddonPath } from '../bundle.ts';
import { spawnError } from './spawn.ts';
import { spawnTerminal } from './terminal.ts';

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
    'ping: cannot be executed in the sandbox (its file carries capabilities that a sandbox does not have; `setcap -r` removes them)',
  );
});

test('a terminal that cannot be opened leaves no descriptor behind', async () => {
  vi.stubEnv('DROVER_PTY_ADDON', ptyAddonPath());
  onTestFinished(() => void vi.unstubAllEnvs());
  // The addon refuses an owner that is no number.
  const user = { uid: 0, gid: 'none' as unknown as number, groups: [], home: '/', name: 'root' };
  const command = { file: '/bin/true', argv: ['true'], env: {}, workdir: '/', user };
  const start = async (): Promise<unknown> => await spawnTerminal(command, 24, 80, (error) => spawnError(command, error));
  await expect(start()).rejects.toThrow();
  const before = readdirSync('/proc/self/fd').length;
  for (let i = 0; i < 5; i++) await expect(start()).rejects.toThrow();
  expect(readdirSync('/proc/self/fd').length).toBe(before);
});
