import { chmod, copyFile, mkdir, realpath, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, networkTag, TestDrover, traces } from './harness/index.ts';

interface SandboxJson {
  readonly state: string;
  readonly exitCode?: number;
}

/** Prints its identity, waits for a line or SIGTERM, and exits with a distinct status for each. */
const program = `
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void end(int signal) { (void)signal; write(1, "bye\\n", 4); _exit(21); }
int main(int argc, char **argv) {
  char line[64] = "";
  if (argc > 1 && strcmp(argv[1], "serve") == 0) {
    signal(SIGTERM, end);
    puts("up");
    fflush(stdout);
    for (;;) pause();
  }
  if (fgets(line, sizeof line, stdin) == NULL) strcpy(line, "nothing\\n");
  printf("pid %s, %s", getpid() == 1 ? "1" : "other", line);
  return argc > 1 ? atoi(argv[1]) : 0;
}
`;

/** Starts children that start children and leave them: orphans, all of which exit within a moment. */
const storm = `
import os, time
for i in range(300):
    if os.fork() == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.wait()
print('done', flush=True)
time.sleep(600)
`;

describe('I-37, I-38: PID 1 in a sandbox', () => {
  let drover: TestDrover;
  let tag: string;
  const images = new Map<string, string>();

  const get = async (name: string): Promise<SandboxJson> => await drover.sandbox<SandboxJson>(name);
  const ok = async (...args: readonly string[]): Promise<string> => {
    const { code, stdout, stderr } = await drover.run(args);
    if (code !== 0) throw new Error(`drover ${args.join(' ')} ended with ${code}: ${stderr}`);
    return stdout;
  };

  /** Makes an OCI layout with the root as its only layer, by umoci. */
  async function layout(name: string, root: string): Promise<string> {
    const path = join(drover.directory, `${name}-layout`);
    await execa('umoci', ['init', '--layout', path]);
    await execa('umoci', ['new', '--image', `${path}:latest`]);
    // `umoci insert` writes layers that lack their padding.
    const bundle = join(drover.directory, `${name}-bundle`);
    await execa('umoci', ['unpack', '--image', `${path}:latest`, bundle]);
    await execa('cp', ['-a', `${root}/.`, join(bundle, 'rootfs')]);
    await execa('umoci', ['repack', '--image', `${path}:latest`, bundle]);
    return `oci:${path}:latest`;
  }

  beforeAll(async () => {
    drover = await TestDrover.start(['--pool', '10.221.0.0/16']);
    tag = await networkTag('10.221.0.1');
    const source = join(drover.directory, 'program.c');
    await writeFile(source, program);

    const scratch = join(drover.directory, 'scratch');
    await mkdir(scratch);
    await execa('gcc', ['-static', '-O1', '-o', join(scratch, 'program'), source]);
    images.set('scratch', await layout('scratch', scratch));

    const musl = join(drover.directory, 'musl');
    await mkdir(join(musl, 'lib'), { recursive: true });
    await execa('musl-gcc', ['-O1', '-o', join(musl, 'program'), source]);
    const { stdout } = await execa('readelf', ['-l', join(musl, 'program')]);
    const loader = /interpreter: ([^\]]+)\]/.exec(stdout)?.[1] ?? '';
    expect(basename(loader)).toMatch(/^ld-musl/);
    await copyFile(await realpath(loader), join(musl, loader));
    await chmod(join(musl, loader), 0o755);
    images.set('musl', await layout('musl', musl));

    const busybox = join(drover.directory, 'busybox');
    await mkdir(join(busybox, 'bin'), { recursive: true });
    await copyFile('/usr/bin/busybox', join(busybox, 'bin', 'busybox'));
    await chmod(join(busybox, 'bin', 'busybox'), 0o755);
    await copyFile(join(scratch, 'program'), join(busybox, 'program'));
    images.set('busybox', `dir:${busybox}`);
  });
  afterAll(async () => {
    await drover[Symbol.asyncDispose]();
    // removal leaves no trace of a sandbox.
    expect((await traces()).filter((trace) => trace.includes(tag) || trace.startsWith(drover.directory))).toEqual([]);
  });

  describe.each(['scratch', 'musl', 'busybox'])('I-38: an image that contains only %s', (kind) => {
    const image = (): string => images.get(kind) ?? '';

    test('runs a command to its status, with its input, under Drover’s init', async () => {
      const result = await drover.run(['run', '--rm', image(), '--', '/program', '7'], { input: 'from outside\n' });
      expect(result).toMatchObject({ code: 7, stdout: 'pid other, from outside\n' });
    });

    test('exec, logs, cp both ways, stop and rm', async () => {
      const name = `in-${kind}`;
      await ok('run', '-d', '--name', name, image(), '--', '/program', 'serve');
      await eventually('the command prints', async () => (await drover.logs(name)) === 'up\n');
      const exec = await drover.run(['exec', name, '--', '/program', '9'], { input: 'by exec\n' });
      expect(exec).toMatchObject({ code: 9, stdout: 'pid other, by exec\n' });
      expect((await drover.run(['exec', name, '--', 'sh-of-nobody'])).code).toBe(127);
      const file = join(drover.directory, `${kind}-copy`);
      await writeFile(file, 'copied\n');
      await ok('cp', file, `${name}:/copy`);
      const { stdout } = await execa('tar', ['-xO'], { input: await ok('cp', `${name}:/copy`, '-') });
      expect(stdout).toBe('copied');
      await ok('sandbox', 'stop', name);
      expect(await get(name)).toMatchObject({ state: 'stopped', exitCode: 21 });
      expect(await ok('logs', name)).toBe('up\nbye\n');
      await ok('sandbox', 'rm', name);
    });
  });

  test('a busybox image has its shell, and a musl or static image needs none', async () => {
    expect(await ok('run', '--rm', images.get('busybox') ?? '', '--', '/bin/busybox', 'sh', '-c', 'echo $((6 * 7))')).toBe('42\n');
  });

  test('I-37: every orphan is reaped', async () => {
    await drover.begin('storm', ['python3', '-c', storm]);
    await eventually('the storm has ended', async () => (await drover.logs('storm')) === 'done\n');
    const zombies = async (): Promise<string> =>
      (await drover.exec('storm', ['sh', '-c', "cat /proc/[0-9]*/stat | grep -c ') Z ' || true"])).stdout;
    await eventually('no zombie is left', async () => (await zombies()) === '0\n');
  });

  test('I-37: SIGTERM goes to the whole process group', async () => {
    const child = "trap 'echo child; exit 0' TERM; while :; do sleep 0.05; done";
    const script = `sh -c "${child}" & trap 'wait; echo parent; exit 8' TERM; echo ready; while :; do sleep 0.05; done`;
    await drover.begin('group', ['sh', '-c', script]);
    await eventually('the command prints', async () => (await drover.logs('group')) === 'ready\n');
    await drover.stop('group');
    expect(await drover.logs('group')).toBe('ready\nchild\nparent\n');
    expect(await get('group')).toMatchObject({ state: 'stopped', exitCode: 8 });
  });

  test('I-37: the command survives a restart of the control plane, and its output is complete afterwards', async () => {
    const script = 'i=1; while [ $i -le 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 14';
    await drover.begin('survivor', ['sh', '-c', script]);
    await eventually('the command prints', async () => (await drover.logs('survivor')).includes('\n10\n'));
    process.kill(await drover.pidOf('serve'), 'SIGKILL');
    await eventually('the control plane reports its end', async () => (await get('survivor').catch(() => undefined))?.state === 'stopped');
    expect((await get('survivor')).exitCode).toBe(14);
    expect(await drover.logs('survivor')).toBe(Array.from({ length: 300 }, (_, i) => `${i + 1}\n`).join(''));
  });

  test('a user other than root can write to /tmp, can listen on port 80, and cannot become root', async () => {
    const script = `
      id -u; touch /tmp/mine && echo wrote
      python3 -c 'import socket; s = socket.socket(); s.bind(("0.0.0.0", 80)); s.listen(); print("listens")'
      su -c true < /dev/null > /dev/null 2>&1 && echo is root
      sudo -n true > /dev/null 2>&1 && echo is root
      touch /etc/x 2> /dev/null && echo wrote to /etc
      exit 0`;
    const result = await drover.run(['run', '--rm', '--user', '1000:1000', 'host', '--', 'sh', '-c', script]);
    expect(result).toMatchObject({ code: 0, stdout: '1000\nwrote\nlistens\n' });
  });

  test('I-37: the OOM killer prefers every process of the user to init: a command, a terminal’s, and one of a user with groups', async () => {
    const script = 'until grep -q 500 /proc/self/oom_score_adj; do sleep 0.05; done; cat /proc/self/oom_score_adj';
    await drover.begin('scores', ['sh', '-c', 'echo friends:x:4242:daemon >> /etc/group; sleep 600']);
    for (const flags of [[], ['-t'], ['--user', 'daemon']]) {
      expect({ flags, score: (await ok('exec', ...flags, 'scores', '--', 'sh', '-c', script)).trim() }).toEqual({ flags, score: '500' });
    }
    // The exec has the group: init started it through its own helper program.
    expect((await drover.exec('scores', ['id', '-G'], { user: 'daemon' })).stdout).toContain('4242');
  });

  test('I-6: root of the sandbox cannot read the memory, environment and descriptors of init', async () => {
    const script =
      'for name in maps mem environ; do cat /proc/1/$name > /dev/null 2>&1 && echo "read $name"; done; ls /proc/1/fd 2>&1; id -u';
    expect((await drover.exec('scores', ['sh', '-c', script])).stdout).toMatch(/^ls: [^\n]*Permission denied\n0\n$/);
    // The program tries PTRACE_SEIZE, and process_vm_readv(2) with no bytes.
    const trace = `import ctypes
c = ctypes.CDLL(None, use_errno=True)
for call in (lambda: c.ptrace(0x4206, 1, None, None), lambda: c.process_vm_readv(1, None, 0, None, 0, 0)):
    ctypes.set_errno(0)
    print(call(), ctypes.get_errno())`;
    expect((await drover.exec('scores', ['python3', '-c', trace])).stdout).toBe('-1 1\n-1 1\n');
  });

  test('the workload cannot change init: its files are read-only', async () => {
    const result = await drover.run([
      'run',
      '--rm',
      'host',
      '--',
      'sh',
      '-c',
      'touch /.drover/x; rm -f /.drover/init.cjs; ls /.drover/init.cjs',
    ]);
    expect(result.stdout).toBe('/.drover/init.cjs\n');
    expect(result.stderr).toMatch(/Read-only file system/);
  });
});
