import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { arbitraryTree, describeTree, makeTree } from '@drover/archive/testing';
import { execa } from 'execa';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, repository, TestDrover, type Finished } from '../harness/index.ts';

describe('copies are exact, or they fail', () => {
  let drover: TestDrover;
  const here = (name: string): string => join(drover.directory, name);
  const cp = async (...args: readonly string[]): Promise<Finished> => await drover.run(['cp', ...args]);
  const copied = async (...args: readonly string[]): Promise<void> => {
    expect(await cp(...args)).toEqual({ code: 0, stdout: '', stderr: '' });
  };
  const inside = async (name: string, script: string): Promise<string> => {
    const { code, stdout, stderr } = await drover.exec(name, ['sh', '-c', script]);
    if (code !== 0) throw new Error(`${script} ended with ${code}: ${stderr}`);
    return stdout;
  };

  /** A copy of an endless tar stream, which goes on while the other tests run. */
  let endless: ReturnType<TestDrover['spawn']>;
  let progress = '';

  beforeAll(async () => {
    drover = await TestDrover.start(['--pool', '10.236.0.0/18']);
    await Promise.all([drover.begin('web', ['sleep', 'infinity']), drover.begin('user', ['sleep', 'infinity'], { user: '65534:65534' })]);
    endless = drover.spawn(['cp', '-', 'user:/var/tmp']);
    endless.stderr.on('data', (data: Buffer) => (progress += data.toString()));
    writeFileSync(here('stream'), '');
    truncateSync(here('stream'), 1024 ** 3);
    const { stdout } = await execa('sh', ['-c', `tar -C '${drover.directory}' -c stream | head -c 1024`], { encoding: 'buffer' });
    endless.stdin.write(stdout);
  });
  afterAll(async () => await drover[Symbol.asyncDispose]());

  test('a copy onto a link to a directory goes into the directory, and a link to a file still points to it', async () => {
    writeFileSync(here('tool'), '#!/bin/sh\necho tool\n', { mode: 0o755 });
    await drover.begin('links', ['sleep', 'infinity']);
    const links = await inside('links', 'readlink /bin /lib');
    await copied(here('tool'), 'links:/bin');
    expect(await inside('links', 'readlink /bin /lib')).toBe(links);
    await copied(here('tool'), 'links:/lib');
    expect(await inside('links', 'tool; ls /usr/bin/tool /usr/lib/tool; readlink /bin /lib')).toBe(
      `tool\n/usr/bin/tool\n/usr/lib/tool\n${links}`,
    );
    await inside('links', 'cd /var/tmp; echo old > real; ln -s real link');
    await copied(here('tool'), 'links:/var/tmp/link');
    expect(await inside('links', 'cd /var/tmp; readlink link; tail -1 real')).toBe('real\necho tool\n');
  });

  test('a setup file does not replace a link to a directory', async () => {
    writeFileSync(here('setup.yaml'), 'files:\n  - path: /bin\n    content: x\n');
    const { code, stderr } = await drover.run(['run', '--rm', '--user', 'root', '--setup', here('setup.yaml'), 'host', '--', 'true']);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/\/bin cannot be made: something else is in its place/);
  });

  test('a tree survives a copy in and out, with all its names, modes, owners, times, links, holes and attributes', async () => {
    let round = 0;
    await fc.assert(
      fc.asyncProperty(arbitraryTree, async (tree) => {
        const [from, back] = [here(`from${round}`), here(`back${round++}`)];
        // A sandbox has 65,536 ids.
        makeTree(from, tree, 65_535);
        await copied('-a', from, `web:/var/tmp/tree${round}`);
        await copied('-a', `web:/var/tmp/tree${round}`, back);
        expect(describeTree(back)).toEqual(describeTree(from));
      }),
      { numRuns: 5 },
    );
  });

  test('an owner without an id in the sandbox is named, and changes the status', async () => {
    mkdirSync(here('owners'));
    writeFileSync(here('owners/far'), 'x');
    chownSync(here('owners/far'), 3_000_000, 0);
    const { code, stderr } = await cp('-a', here('owners'), 'web:/var/tmp');
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /^drover: owners\/far was copied without its owner 3000000:0: invalid argument\ndrover: 1 file was not copied, or not completely\n/,
    );
  });

  test("a copy belongs to the user of the sandbox's command, or to a chosen user, or keeps its owner", async () => {
    writeFileSync(here('private'), 'x', { mode: 0o600 });
    chownSync(here('private'), 12, 34);
    await copied(here('private'), 'user:/var/tmp/plain');
    await copied('--chown', 'root:100', here('private'), 'user:/var/tmp/chowned');
    await copied('--archive', here('private'), 'user:/var/tmp/kept');
    expect(await inside('user', 'cd /var/tmp; cat plain; stat -c %u:%g plain chowned kept')).toBe('x65534:65534\n0:100\n12:34\n');
    await copied('user:/var/tmp/kept', here('mine'));
    expect(statSync(here('mine')).uid).toBe(process.getuid?.());
    await copied('-a', 'user:/var/tmp/kept', here('theirs'));
    expect(statSync(here('theirs'))).toMatchObject({ uid: 12, gid: 34 });
  });

  test('files that cannot be copied are counted and named, and change the status', async () => {
    mkdirSync(here('odd'));
    execFileSync('mkfifo', [here('odd/pipe')]);
    writeFileSync(here('odd/z'), 'z');
    const server = createServer().listen(here('odd/socket'));
    await new Promise((resolve) => server.once('listening', resolve));
    const into = await cp(here('odd'), 'web:/var/tmp');
    server.close();
    expect(into).toEqual({
      code: 1,
      stdout: '',
      stderr:
        `drover: ${here('odd/pipe')} is a FIFO\ndrover: ${here('odd/socket')} is a socket\n` +
        'drover: 2 files were not copied, or not completely\n  hint: they are named above\n',
    });
    expect(await inside('web', 'ls /var/tmp/odd')).toBe('z\n');

    await inside('web', 'cd /var/tmp; mkdir out; mkfifo out/pipe out/pipe2; echo z > out/z');
    const out = await cp('-o', 'json', 'web:/var/tmp/out', here('out'));
    expect(out.code).toBe(1);
    expect(JSON.parse(out.stdout)).toEqual({
      entries: 2,
      bytes: 2,
      leftOut: ['pipe', 'pipe2'].map((name) => ({ path: `/var/tmp/out/${name}`, reason: 'is a FIFO' })),
      leftOutCount: 2,
    });
    expect(readFileSync(here('out/z'), 'utf8')).toBe('z\n');
    expect((await cp('web:/var/tmp/out/pipe', here('pipe'))).stderr).toMatch(/\/var\/tmp\/out\/pipe is a FIFO: it cannot be copied\n/);
    expect((await cp(here('nothing'), 'web:/tmp')).stderr).toMatch(/nothing cannot be read: no such file or directory/);
  });

  test('a file that does not report its size is copied completely', async () => {
    await copied('web:/proc/sys/kernel/ostype', here('ostype'));
    expect(readFileSync(here('ostype'), 'utf8')).toBe('Linux\n');
    await copied('/proc/sys/kernel/ostype', 'web:/var/tmp/ostype');
    expect(await inside('web', 'cat /var/tmp/ostype')).toBe('Linux\n');
  });

  test('a file that shrinks during the copy is an error that names it, and leaves no partial copy', async () => {
    const path = here('shrinks');
    writeFileSync(path, Buffer.alloc(100_000_000, 'x'));
    const copying = cp(path, 'web:/var/tmp/shrinks');
    await inside('web', 'until [ -s /var/tmp/shrinks ]; do :; done');
    truncateSync(path, 1000);
    const { code, stderr } = await copying;
    expect(stderr).toMatch(/shrinks changed while it was copied: it had 100000000 bytes, and /);
    expect(code).toBe(4);
    expect(await inside('web', 'until ! ls /var/tmp/shrinks 2>/dev/null; do :; done; echo removed')).toMatch(/removed\n$/);
  });

  test('holes stay holes in both directions', async () => {
    writeFileSync(here('holes'), 'begin');
    truncateSync(here('holes'), 2_000_000_000);
    await copied(here('holes'), 'web:/var/tmp/holes');
    expect(await inside('web', 'cd /var/tmp; stat -c %s holes; [ $(stat -c %b holes) -lt 100 ] && echo sparse')).toBe(
      '2000000000\nsparse\n',
    );
    await copied('web:/var/tmp/holes', here('holes-back'));
    expect(statSync(here('holes-back')).size).toBe(2_000_000_000);
    expect(statSync(here('holes-back')).blocks).toBeLessThan(100);
  });

  test('cp accepts names that are not UTF-8; other arguments and variables must be UTF-8', async () => {
    const name = (before: string): string => `"$(printf '${before}n\\351')"`;
    const shell = (command: string): string =>
      execFileSync('sh', ['-c', `${command} 2>&1 || true`], {
        cwd: repository,
        env: { ...process.env, ...drover.environment },
        encoding: 'latin1',
      });
    shell(`echo bytes > ${name(`${drover.directory}/`)}`);
    expect(shell(`./drover cp ${name(`${drover.directory}/`)} ${name('web:/var/tmp/in-')}`)).toBe('');
    expect(await inside('web', 'ls -b /var/tmp | grep in-')).toBe('in-n\\351\n');
    expect(shell(`./drover cp ${name('web:/var/tmp/in-')} ${name(`${drover.directory}/out-`)}`)).toBe('');
    expect(readdirSync(drover.directory, 'latin1')).toContain('out-n\xe9');
    expect(shell(`./drover exec web -- echo ${name('')}`)).toMatch(/the argument "n\\xe9" is not UTF-8/);
    expect(shell(`V=${name('')} ./drover run --rm -e V host -- true`)).toMatch(/the value of V is not UTF-8/);
  });

  test('SRC/. means the contents of a directory, and -L copies the targets of links', async () => {
    mkdirSync(here('src/sub'), { recursive: true });
    writeFileSync(here('src/sub/file'), 'content');
    symlinkSync('sub/file', here('src/link'));
    mkdirSync(here('tmp'));
    chmodSync(here('src'), 0o750);
    await copied(`${here('src')}/.`, 'web:/tmp');
    expect(await inside('web', 'stat -c %a /tmp; readlink /tmp/link; cat /tmp/sub/file')).toBe('1777\nsub/file\ncontent');
    await copied('-L', `${here('src')}/.`, 'web:/var/tmp/new');
    expect(await inside('web', 'cd /var/tmp; stat -c %a:%F new new/link')).toBe('750:directory\n644:regular file\n');
    await copied('web:/var/tmp/new/.', here('tmp'));
    expect(readdirSync(here('tmp'))).toEqual(['link', 'sub']);
    await copied('-L', 'web:/tmp/link', here('linked'));
    expect(lstatSync(here('linked')).isFile()).toBe(true);
    await copied('web:/tmp/link', here('as-link'));
    expect(readlinkSync(here('as-link'))).toBe('sub/file');
  });

  test('in a pipe, a long copy reports its progress in lines', async () => {
    const reported = (): boolean => {
      endless.stdin.write(Buffer.alloc(1024));
      return /^drover: [\d.]+ \S+ copied, [\d.]+ \S+\/s$/m.test(progress);
    };
    await eventually('a line of progress', reported, 30_000, () => progress);
    endless.kill('SIGKILL');
    await endless;
  });

  test("cp copies out of a stopped sandbox through its host, with the sandbox's owners and links", async () => {
    const script =
      'mkdir /var/tmp/left; cd /var/tmp/left; echo content > file; chown 12:34 file; ln -s /etc/hostname link; ln -s /var/tmp/left /way; mkfifo pipe';
    await drover.begin('ended', ['sh', '-c', script], { hostname: 'inside' });
    await eventually('it has ended', async () => (await drover.sandbox<{ state: string }>('ended')).state === 'stopped');
    const { code, stderr } = await cp('-a', 'ended:/way/', here('ended'));
    expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining('/way/pipe is a FIFO') as string });
    expect(statSync(here('ended/file'))).toMatchObject({ uid: 12, gid: 34 });
    expect(readlinkSync(here('ended/link'))).toBe('/etc/hostname');
    // The link points to the sandbox's file, not to this machine's.
    await copied('-L', 'ended:/var/tmp/left/link', here('hostname'));
    expect(readFileSync(here('hostname'), 'utf8')).toBe('inside\n');
    expect((await cp('ended:/nothing', here('x'))).stderr).toMatch(/the sandbox has no \/nothing/);
  });
});
