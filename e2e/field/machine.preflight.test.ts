import { join } from 'node:path';
import { execa } from 'execa';
import { describe, expect, test } from 'vitest';
import { repository } from '../harness/index.ts';

const preflight = `sh ${join(repository, 'scripts', 'preflight.sh')} kernel`;
const without = (capability: string): readonly string[] => ['setpriv', `--bounding-set=-${capability}`, 'sh', '-c', preflight];
/** Returns a wrapper that runs a program in a user namespace without permission to make namespaces of a kind. */
const none = (kind: string): readonly string[] => inNamespace('--user', `echo 0 >/proc/sys/user/max_${kind}_namespaces`);
const mounting = (command: string): readonly string[] => inNamespace('--mount', command);

function inNamespace(kind: '--user' | '--mount', command: string): readonly string[] {
  return ['unshare', kind, ...(kind === '--user' ? ['--map-root-user'] : []), 'sh', '-c', `${command} && exec ${preflight}`];
}

describe('a machine that lacks a capability ends npm test with its name', () => {
  test.each([
    ['mount namespaces', without('sys_admin')],
    ['mount namespaces', none('mnt')],
    ['PID namespaces', none('pid')],
    ['network namespaces', none('net')],
    ['user namespaces', none('user')],
    ['veth interfaces', without('net_admin')],
    ['the cgroup controller cpu', mounting('mount -t tmpfs tmpfs /sys/fs/cgroup')],
    ['loop devices', mounting('mount -t tmpfs tmpfs /dev')],
  ])('%s: %j', async (capability, [file = '', ...args]) => {
    const { exitCode, stderr } = await execa(file, args, { reject: false, stdin: 'ignore' });
    const [first, second] = stderr.split('\n');
    expect({ exitCode, first }).toEqual({
      exitCode: 6,
      first: `drover: this machine lacks a capability that the tests need: ${capability}`,
    });
    expect(second).toMatch(/^ {2}hint: \S+/);
  });

  test('root, before anything is installed or run', async () => {
    const options = { reject: false, stdin: 'ignore', cwd: repository } as const;
    const { exitCode, stdout, stderr } = await execa('setpriv', ['--reuid=65534', '--clear-groups', 'sh', 'scripts/test.sh'], options);
    expect({ exitCode, stdout, stderr }).toEqual({
      exitCode: 6,
      stdout: '',
      stderr: expect.stringMatching(/^drover: this machine lacks a capability that the tests need: root\n {2}hint: run npm test as root/),
    });
  });

  test('this machine lacks no capability', async () => {
    expect(await execa('sh', ['-c', preflight])).toMatchObject({ exitCode: 0, stderr: '' });
  });
});
