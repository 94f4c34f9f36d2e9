import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, networkTag, repository, Terminal, TestDrover, traces } from './harness/index.ts';

interface SandboxJson {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly reason: string;
  readonly message: string;
  readonly exitCode?: number;
  readonly labels: Readonly<Record<string, string>>;
}

describe('R-2: drover run', () => {
  let drover: TestDrover;
  let tag: string;

  const get = async (name: string): Promise<SandboxJson> => await drover.sandbox<SandboxJson>(name);
  const reaches = async (name: string, state: string): Promise<SandboxJson> =>
    await eventually(`${name} is ${state}`, async () => {
      const sandbox = await get(name);
      return sandbox.state === state ? sandbox : undefined;
    });
  const shell = async (script: string, ...flags: readonly string[]) =>
    await drover.run(['run', '--rm', ...flags, 'host', '--', 'sh', '-c', script]);
  const initPid = async (name: string): Promise<string> =>
    (await readFile(join(drover.data, 'host', 'sandboxes', (await get(name)).id, 'init.pid'), 'utf8')).trim();

  beforeAll(async () => {
    drover = await TestDrover.start(['--pool', '10.216.0.0/16', '--standbys', '1', '--allow-mount', '/tmp/drover-e2e-run-shared']);
    tag = await networkTag('10.216.0.1');
  });
  afterAll(async () => {
    await drover[Symbol.asyncDispose]();
    // removal leaves no trace of a sandbox.
    expect((await traces()).filter((trace) => trace.includes(tag) || trace.startsWith(drover.directory))).toEqual([]);
  });

  describe('ends with the status of the command', () => {
    test.each([
      ['exit 0', 0],
      ['exit 7', 7],
      ['kill -KILL $$', 137],
      ['kill -TERM $$', 143],
    ])('%s: status %d', async (script, status) => {
      expect((await shell(script)).code).toBe(status);
    });

    test('a missing program has status 127, a program that cannot be executed 126, each with one sentence and the next step', async () => {
      const missing = await drover.run(['run', '--rm', 'host', '--', 'no-such-program']);
      expect(missing).toMatchObject({ code: 127, stdout: '' });
      expect(missing.stderr).toBe(
        'drover: no-such-program: command not found in the sandbox\n  hint: check the spelling, and that the image has it\n',
      );
      const plain = await drover.run(['run', '--rm', 'host', '--', '/etc/passwd']);
      expect(plain).toMatchObject({ code: 126, stdout: '' });
      expect(plain.stderr).toMatch(/^drover: \/etc\/passwd: cannot be executed in the sandbox \(permission denied\)\n {2}hint: /);
    });
  });

  test.each<readonly [what: string, program: string, user: string, status: number, sentence: RegExp]>([
    ['does not exist', 'no-such-program', '', 127, /^drover: no-such-program: command not found in the sandbox\n {2}hint: [^\n]+\n$/],
    ['cannot be executed', '/etc/passwd', '', 126, /^drover: \/etc\/passwd: cannot be executed [^\n]+\n {2}hint: [^\n]+\n$/],
    ['has an unknown user', 'true', 'nobody-at-all', 125, /^drover: [^\n]*nobody-at-all[^\n]*\n {2}hint: [^\n]+\n$/],
  ])('attach to a sandbox whose command %s reports the same error', async (_, program, user, status, sentence) => {
    const name = `late-${status}`;
    await drover.create(name, [program], { user });
    await eventually(`${name} has ended`, async () => ['failed', 'stopped'].includes((await get(name)).state));
    const { code, stdout, stderr } = await drover.run(['attach', '-n', name]);
    expect(stderr).toMatch(sentence);
    expect({ code, stdout }).toEqual({ code: status, stdout: '' });
  });

  test('stdin reaches the command to its end; stdout and stderr stay separate', async () => {
    const result = await drover.run(['run', '--rm', 'host', '--', 'sh', '-c', 'cat; echo end; echo aside >&2'], { input: 'one\ntwo\n' });
    expect(result).toMatchObject({ code: 0, stdout: 'one\ntwo\nend\n' });
    expect(result.stderr).toMatch(/^aside$/m);
  });

  test('20 MB pass in and out, byte for byte', async () => {
    const file = join(drover.directory, 'large');
    await execa('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', 'count=20', 'status=none']);
    const script = 'sha256sum < "$2"; "$1" run --rm host -- cat < "$2" | sha256sum';
    const { stdout, stderr } = await execa('sh', ['-c', script, 'sh', join(repository, 'drover'), file], { env: drover.environment });
    const [sent, received] = stdout.split('\n');
    expect(received).toBe(sent);
    expect(stderr).not.toContain('Warning');
  });

  test('--rm: the output of a short command is complete, and the sandbox is deleted when run returns', async () => {
    for (let i = 0; i < 5; i++) {
      const result = await drover.run(['run', '--rm', '--name', 'brief', 'host', '--', 'echo', `hi ${i}`]);
      expect(result).toMatchObject({ code: 0, stdout: `hi ${i}\n` });
    }
    await expect(get('brief')).rejects.toMatchObject({ code: 'sandbox-not-found' });
  });

  test('-d prints the name and leaves the sandbox running; -d --rm keeps it until its output could be read, then deletes it', async () => {
    const { stdout } = await drover.run(['run', '-d', '--name', 'behind', 'host', '--', 'sleep', '600']);
    expect(stdout).toBe('behind\n');
    expect((await get('behind')).state).toBe('running');
    await drover.run(['run', '-d', '--rm', '--name', 'shortly', 'host', '--', 'sh', '-c', 'echo done; exit 3']);
    const { code } = await drover.run(['sandbox', 'wait', 'shortly']);
    expect(code).toBe(3);
    expect(await drover.logs('shortly')).toBe('done\n');
    await eventually('the sandbox is deleted', async () => !(await drover.sandboxes()).some(({ name }) => name === 'shortly'));
  });

  test('--env, --env-file and a variable of the caller reach the command', async () => {
    const file = join(drover.directory, 'env');
    await writeFile(file, '# a comment\nFROM_FILE=a b=c\nBOTH=file\n');
    const { stdout } = await drover.run(
      ['run', '--rm', '--env-file', file, '-e', 'BOTH=flag', '-e', 'MINE', 'host', '--', 'sh', '-c', 'echo "$FROM_FILE|$BOTH|$MINE"'],
      { env: { MINE: 'my own' } },
    );
    expect(stdout).toBe('a b=c|flag|my own\n');
  });

  test('--workdir, --user, --hostname and --entrypoint', async () => {
    const { stdout } = await shell(
      'id -u; id -g; pwd; hostname',
      '--workdir',
      '/usr/lib',
      '--user',
      'nobody:nogroup',
      '--hostname',
      'its-own',
    );
    expect(stdout.split('\n')).toEqual(['65534', '65534', '/usr/lib', 'its-own', '']);
    const entry = await drover.run(['run', '--rm', '--entrypoint', '/bin/echo', 'host', '--', 'a', 'b']);
    expect(entry).toMatchObject({ code: 0, stdout: 'a b\n' });
  });

  test('--label is shown, and filters a list', async () => {
    await drover.run(['run', '--name', 'labelled', '-l', 'team=blue', 'host', '--', 'true']);
    expect((await get('labelled')).labels).toEqual({ team: 'blue' });
    const names = (await drover.json<SandboxJson[]>(['sandbox', 'ls', '--label', 'team=blue'])).map(({ name }) => name);
    expect(names).toEqual(['labelled']);
  });

  describe('R-10: limits', () => {
    test('--memory: the kill is reported as out of memory, not as an exit', async () => {
      const args = ['run', '--name', 'hungry', '--memory', '64m', 'host', '--', 'tail', '/dev/zero'];
      const { code, stderr } = await drover.run(args);
      expect(code).toBe(137);
      expect(stderr).toMatch(/hungry ran out of memory\n {2}hint: give it more with --memory/);
      // Its host reports the end a moment after the session does.
      const hungry = await reaches('hungry', 'failed');
      expect(hungry).toMatchObject({ reason: 'out-of-memory', exitCode: 137, outOfMemory: true });
      expect(hungry.message).toMatch(/its limit is 67108864 bytes/);
    });

    test('--pids bounds the number of processes, and init keeps running', async () => {
      const { code, stdout, stderr } = await shell('for i in $(seq 60); do sleep 2 & done; echo started them all', '--pids', '20');
      expect(stderr).toMatch(/fork/i);
      expect(stdout).toBe('');
      expect(code).not.toBe(137);
      expect(code).not.toBe(0);
    });

    test('--disk: a full disk is an error of the program that fills it', async () => {
      const { code, stdout, stderr } = await shell('dd if=/dev/zero of=/var/tmp/x bs=1M count=60; echo "dd: $?"', '--disk', '20m');
      expect(stderr).toMatch(/No space left on device/);
      expect({ code, stdout }).toEqual({ code: 0, stdout: 'dd: 1\n' });
    });

    test('--cpus is in force in its cgroup', async () => {
      await drover.run(['run', '-d', '--name', 'slow', '--cpus', '0.25', 'host', '--', 'sleep', '600']);
      const cgroups = await readFile(`/proc/${await initPid('slow')}/cgroup`, 'utf8');
      const path = (pattern: RegExp): string => pattern.exec(cgroups)?.[1] ?? '/nowhere';
      const candidates = [
        `/sys/fs/cgroup${path(/^0::(.*)$/m)}/cpu.max`,
        ...['cpu', 'cpu,cpuacct', 'cpuacct,cpu'].map(
          (name) => `/sys/fs/cgroup/${name}${path(/^\d+:(?:.*,)?cpu(?:,.*)?:(.*)$/m)}/cpu.cfs_quota_us`,
        ),
      ];
      const found = await Promise.all(candidates.map(async (file) => await readFile(file, 'utf8').catch(() => '')));
      expect(found.map((text) => text.trim()).filter((text) => text !== '')).toContainEqual(expect.stringMatching(/^25000( 100000)?$/));
    });
  });

  test('R-18: --volume mounts the paths that the host allows, read-only on request, and refuses all others', async () => {
    const shared = '/tmp/drover-e2e-run-shared';
    await execa('sh', ['-c', `mkdir -p ${shared} && chmod 777 ${shared} && echo from the host > ${shared}/file`]);
    try {
      const both = await shell('cat /mnt/in/file; echo from the sandbox > /mnt/in/back', '--volume', `${shared}:/mnt/in`);
      expect(both).toMatchObject({ code: 0, stdout: 'from the host\n' });
      expect(await readFile(`${shared}/back`, 'utf8')).toBe('from the sandbox\n');
      const readOnly = await shell('echo x > /mnt/in/file', '--volume', `${shared}:/mnt/in:ro`);
      expect(readOnly.code).not.toBe(0);
      expect(readOnly.stderr).toMatch(/Read-only file system/);
      const refused = await shell('true', '--name', 'refused', '--volume', '/etc:/mnt/etc');
      expect(refused.code).toBe(125);
      expect(refused.stderr).toMatch(/the directory \/etc may not be mounted on this host.*--allow-mount/s);
      await expect(get('refused')).rejects.toMatchObject({ code: 'sandbox-not-found' });
    } finally {
      await execa('rm', ['-rf', shared]);
    }
  });

  test.each(['SIGTERM', 'SIGINT'] as const)('%s to the CLI is forwarded to the command', async (signal) => {
    const script = `trap 'echo got ${signal}; exit 9' ${signal.slice(3)}; echo ready; while :; do sleep 0.05; done`;
    const run = drover.spawn(['run', '--rm', 'host', '--', 'sh', '-c', script]);
    let output = '';
    run.stdout.on('data', (data: Buffer) => (output += data.toString()));
    await eventually('the command runs', () => output.includes('ready'));
    run.kill(signal);
    const { exitCode } = await run;
    expect(output).toBe(`ready\ngot ${signal}\n`);
    expect(exitCode).toBe(9);
  });

  describe('-t: a terminal', () => {
    test('has the size of the caller’s, follows it, and passes Ctrl-C as a key', async () => {
      using terminal = new Terminal(drover, ['run', '--rm', '-t', 'host', '--', 'sh', '-c', 'tty; stty size; exec sh'], {
        columns: 101,
        rows: 33,
      });
      await terminal.shows('33 101');
      expect(terminal.output).toContain('/dev/pts/');
      terminal.resize(120, 40);
      // The size and the keys travel separately, so either may arrive first.
      await eventually('the terminal inside has the new size', () => {
        terminal.type('stty size\r');
        return terminal.output.includes('40 120');
      });
      // The quotes distinguish the printed text from the echo of the typed text.
      terminal.type('echo be""gun; sleep 1000\r');
      await terminal.shows('begun');
      terminal.type('\u0003');
      terminal.type('echo status $?\r');
      await terminal.shows('status 130');
      terminal.type('exit 4\r');
      expect(await terminal.exit()).toBe(4);
    });

    test('Ctrl-P Ctrl-Q detaches, and attach reattaches', async () => {
      using terminal = new Terminal(drover, ['run', '-t', '--name', 'kept', 'host', '--', 'sh'], { columns: 80, rows: 24 });
      await terminal.shows(/[#$] $/);
      terminal.type('MARK=still; echo one$MARK\r');
      await terminal.shows('onestill');
      terminal.type('\u0010\u0011');
      expect(await terminal.exit()).toBe(0);
      expect(terminal.output).toContain('drover attach kept');
      expect((await get('kept')).state).toBe('running');
      using again = new Terminal(drover, ['attach', 'kept'], { columns: 80, rows: 24 });
      await again.shows('onestill');
      again.type('echo two$MARK; exit 5\r');
      await again.shows('twostill');
      expect(await again.exit()).toBe(5);
      expect(await reaches('kept', 'stopped')).toMatchObject({ exitCode: 5 });
    });
  });

  test('killing init from outside ends its run and no other', async () => {
    const run = drover.spawn(['run', '--name', 'struck', 'host', '--', 'sh', '-c', 'echo here; sleep 600']);
    await eventually('the sandbox prints', async () => (await drover.logs('struck').catch(() => '')) === 'here\n');
    const serve = await drover.pidOf('serve');
    process.kill(Number(await initPid('struck')), 'SIGKILL');
    const { exitCode, stdout } = await run;
    expect({ exitCode, stdout }).toEqual({ exitCode: 137, stdout: 'here\n' });
    expect(await drover.pidOf('serve')).toBe(serve);
  });

  test('R-20: --ttl is honoured across a restart of the control plane', async () => {
    await drover.run(['run', '-d', '--name', 'mortal', '--ttl', '3s', 'host', '--', 'sleep', '600']);
    process.kill(await drover.pidOf('serve'), 'SIGKILL');
    const ended = await eventually('the sandbox has ended', async () => {
      const sandbox = await get('mortal').catch(() => undefined);
      return sandbox?.state === 'stopped' ? sandbox : undefined;
    });
    expect(ended.exitCode).toBe(143);
  });
});
