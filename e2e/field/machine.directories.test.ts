import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { launcher, tool } from '../harness/index.ts';

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-unusable-'));
  for (const name of ['read-only', 'full']) await mkdir(join(directory, name));
  await writeFile(join(directory, 'file'), '');
  await tool('mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', join(directory, 'read-only'));
  await tool('mount', '-t', 'tmpfs', '-o', 'size=4k', 'tmpfs', join(directory, 'full'));
  await writeFile(join(directory, 'full', 'file'), Buffer.alloc(4096));
});
afterAll(async () => {
  for (const name of ['read-only', 'full']) await tool('umount', join(directory, name));
  await rm(directory, { recursive: true });
});

const listen = ['--listen', '127.0.0.1:0'];
const up = ['up', ...listen, '--pool', '10.230.2.0/24', '--data'];
/** Every command with a directory flag. */
const commands = {
  up,
  serve: ['serve', ...listen, '--data'],
  agent: ['agent', '--state'],
  'agent join': ['agent', 'join', 'https://127.0.0.1:1', '--token', `drv1.${'a'.repeat(64)}.${'b'.repeat(43)}`, '--state'],
};
const kinds = { up: 'data', serve: 'data', agent: 'state', 'agent join': 'state' } as const;
const reasons = {
  '/proc/x': 'its file system takes no new files',
  'read-only/x': 'its file system is read-only',
  full: 'its file system is full',
  'file/x': 'a part of the path is not a directory',
} as const;
type Name = keyof typeof commands;
const cases = (Object.keys(commands) as Name[]).flatMap((name) =>
  Object.entries(reasons).map(([path, reason]) => [name, path, reason] as const),
);

async function drover(args: readonly string[], through: readonly string[] = []) {
  const [file = '', ...rest] = [...through, launcher, ...args];
  return await execa(file, rest, { reject: false, stdin: 'ignore', timeout: 60_000, env: { XDG_CONFIG_HOME: directory, NO_COLOR: '1' } });
}

describe('an unusable directory is one error, without delay', () => {
  test.concurrent.each(cases)('drover %s on %s: %s', async (name, path, reason) => {
    const full = path.startsWith('/') ? path : join(directory, path);
    const { stderr, timedOut, exitCode } = await drover([...commands[name], full]);
    const flag = `--${kinds[name]}`;
    expect({ stderr: stderr.split('\n').filter((line) => !line.startsWith('drover: not root')), timedOut, exitCode }).toEqual({
      stderr: [`drover: the ${kinds[name]} directory ${full} cannot be used: ${reason}`, `  hint: choose another with ${flag}`],
      timedOut: false,
      exitCode: expect.any(Number),
    });
    expect(exitCode).not.toBe(0);
  });

  test('drover up as a user without write access', async () => {
    const { stderr } = await drover([...up, '/var/lib/drover-of-root'], ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups']);
    expect(stderr).toContain('the data directory /var/lib/drover-of-root cannot be used: this user cannot write there');
  });

  test.each([
    ['serve --config', ['serve', '--config', '/dev/zero'], 'the configuration file /dev/zero has more than 1048576 bytes'],
    [
      'sandbox ls --ca',
      ['sandbox', 'ls', '--server', 'localhost', '--token', 'x', '--ca', '/dev/zero'],
      'the CA file /dev/zero is larger than 1048576 bytes',
    ],
  ])('%s on a file without an end', async (_, args, message) => {
    const { stderr, timedOut } = await drover(args);
    expect({ stderr, timedOut }).toEqual({ stderr: expect.stringContaining(message), timedOut: false });
  });

  test('a compile cache in /proc is ignored', async () => {
    const options = { reject: false, stdin: 'ignore', timeout: 60_000, env: { NODE_COMPILE_CACHE: '/proc/x' } } as const;
    expect(await execa(launcher, ['--version'], options)).toMatchObject({ exitCode: 0, stderr: '' });
  });

  test('drover doctor on a directory in /proc', async () => {
    const { stdout, exitCode } = await drover(['doctor', ...listen, '--data', '/proc/x']);
    expect(stdout).toContain('problem  disk: /proc cannot be used: its file system takes no new files');
    expect(exitCode).toBe(1);
  });
});
