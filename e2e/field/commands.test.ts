import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { join } from 'node:path';
import { createServer as createTlsServer } from 'node:tls';
import { FakeClock } from '@drover/foundation';
import { formatJoinToken, newSecret, openCertificateAuthority } from '@drover/pki';
import { buildProgram, commandPath, locate, runCli } from 'drover';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { eventually, Terminal, TestDrover, testsOtherCheckout, type Finished } from '../harness/index.ts';

let drover: TestDrover;
/** A registry that accepts connections and never responds. A sandbox with an image of it stays in preparation. */
let mute: Server;
let image: string;

beforeAll(async () => {
  mute = createServer(() => undefined).listen(0, '127.0.0.1');
  await once(mute, 'listening');
  image = `127.0.0.1:${(mute.address() as AddressInfo).port}/x/y:1`;
  drover = await TestDrover.start(['--pool', '10.237.128.0/18', '--name', 'near']);
  await drover.begin('web', ['sleep', '1000']);
}, 120_000);

afterAll(async () => {
  mute?.close();
  await drover?.[Symbol.asyncDispose]();
});

const names = async (): Promise<string[]> => (await drover.sandboxes<{ name: string }>()).map(({ name }) => name);

describe('flags after IMAGE and SANDBOX belong to the command', () => {
  test.each([
    [['run', '--rm', '-n', 'host', 'ls', '-la', '/'], /^total /],
    [['exec', '-n', 'web', 'ls', '-la', '/'], /^total /],
    [['exec', '-n', 'web', '--', 'echo', '--', '-o', 'json'], /^-- -o json\n$/],
  ])('%j', async (args, stdout) => {
    const outcome = await drover.run(args);
    expect(outcome.code).toBe(0);
    expect(outcome.stdout).toMatch(stdout);
  });
});

describe('an interrupted run whose sandbox is still in preparation', () => {
  const size = { columns: 100, rows: 30 };

  test.concurrent.each([
    ['Ctrl-C', 'ctrl-c', [], 130],
    ['Ctrl-C, with --rm', 'ctrl-c-rm', ['--rm'], 130],
    ['Ctrl-C, with -d', 'ctrl-c-d', ['-d'], 130],
    ['SIGTERM', 'sigterm', [], 143],
    ['SIGHUP', 'sighup', [], 129],
  ])('%s ends it and removes the sandbox', async (key, name, flags, status) => {
    using terminal = new Terminal(drover, ['run', ...flags, '--name', name, image, 'true'], size);
    await terminal.shows(/preparing/);
    expect(await names()).toContain(name);
    if (key.startsWith('Ctrl-C')) terminal.type('\u0003');
    else terminal.kill(key);
    expect(await terminal.exit()).toBe(status);
    await eventually('its sandbox is removed', async () => !(await names()).includes(name));
  });
});

describe('contexts', () => {
  test('up prints its context and how to switch back, and other commands choose a context by name', async () => {
    const { server } = await drover.connection();
    const data = join(drover.directory, 'other');
    const other = drover.spawn(['up', '--no-agent', '--data', data, '--listen', '127.0.0.1:0']);
    try {
      let shown = '';
      other.stdout.on('data', (text: Buffer) => (shown += text.toString()));
      await eventually(
        'the other control plane prints how to switch back',
        () => /go back/.test(shown),
        60_000,
        () => shown,
      );
      expect(shown).toMatch(
        /ready on https:\S+ — .*\ndrover: commands now go to this control plane \(context local-2\); to go back: drover context use local\n$/,
      );
      const list = await drover.json<{ name: string; server: string; current: boolean }[]>(['context', 'ls']);
      expect(list).toEqual([
        { name: 'local', server, current: false },
        { name: 'local-2', server: /ready on (https:\S+)/.exec(shown)?.[1], current: true },
      ]);
      expect(await drover.json<unknown[]>(['ps'])).toEqual([]);
      expect(await drover.json<unknown[]>(['--context', 'local', 'ps'])).toHaveLength(1);
      expect(await drover.run(['context', 'use', 'local'])).toMatchObject({ code: 0, stdout: 'local\n' });
      expect(await drover.json<unknown[]>(['ps'])).toHaveLength(1);
      expect((await drover.run(['ps', '-q'], { env: { DROVER_CONTEXT: 'local-2' } })).stdout).toBe('');
      expect((await drover.run(['context', 'rm', 'local-2'])).code).toBe(0);
    } finally {
      other.kill('SIGINT');
      await other;
    }
  });
});

describe('-o json', () => {
  test("the shape of a command's output does not depend on the number of names; numbers are numbers", async () => {
    const [stopped] = await drover.json<{ name: string; startCount: number; generation: number }[]>(['stop', 'web']);
    expect(stopped).toMatchObject({ name: 'web', startCount: 1, generation: expect.any(Number) as number });
    expect(await drover.json(['start', 'web'])).toMatchObject([{ name: 'web' }]);
    expect(JSON.parse((await drover.run(['inspect', 'web'])).stdout)).toMatchObject({ name: 'web', startCount: 2 });
    const [host] = await drover.json<{ capacity: { memoryBytes: number } }[]>(['host', 'ls']);
    expect(host?.capacity.memoryBytes).toBeGreaterThan(0);
    expect(await drover.run(['-o', 'json', 'host', 'ls'])).toMatchObject({ code: 0, stderr: '' });
  });
});

test('familiar Docker commands are accepted', async () => {
  const succeeds = async (...args: readonly string[]): Promise<string> => {
    const { code, stdout, stderr } = await drover.run(args);
    expect({ args, code, stderr: code === 0 ? '' : stderr }).toEqual({ args, code: 0, stderr: '' });
    return stdout;
  };
  await drover.begin('docked', ['sleep', '1000']);
  expect(await succeeds('ps')).toMatch(/^docked +sb-\S+ +running/m);
  expect(await succeeds('stop', 'docked')).toBe('docked\n');
  expect(await succeeds('start', 'docked')).toBe('docked\n');
  expect(await succeeds('kill', 'docked')).toBe('docked\n');
  expect(JSON.parse(await succeeds('inspect', 'docked'))).toMatchObject({ name: 'docked', exitCode: 137 });
  expect(await succeeds('rm', 'docked')).toBe('docked\n');
});

test('a create with a runtime that no host has is refused', async () => {
  const outcome = await drover.run(['run', '--runtime', 'docker', 'host', 'true']);
  expect(outcome).toMatchObject({ code: 125, stdout: '' });
  expect(outcome.stderr).toBe(
    'drover: no host has the runtime docker (near: oci)\n  hint: leave out --runtime, or name one that a host has\n',
  );
});

describe('a certificate whose dates do not include the present time', () => {
  const day = 24 * 3_600_000;

  test.each([
    ['is not yet valid, as on a machine whose clock is slow', 20 * day, /is valid from (\S+), and the clock of this machine says (\S+)$/m],
    ['has expired, as on a machine whose clock is fast', -40 * day, /was valid until (\S+), and the clock of this machine says (\S+)$/m],
  ])('%s: the error names both times', async (_, offsetMs, sentence) => {
    const directory = join(drover.directory, `pki${offsetMs}`);
    const ca = await openCertificateAuthority(directory, { trustDomain: 'clock.test', clock: new FakeClock(Date.now() + offsetMs) });
    const { certificatePem, keyPem } = await ca.issueControlPlane({ dnsNames: [], ipAddresses: ['127.0.0.1'] });
    const server = createTlsServer({ cert: certificatePem, key: keyPem, ALPNProtocols: ['h2'] }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const { port } = server.address() as AddressInfo;
      await writeFile(join(directory, 'given.pem'), ca.caPem);
      const connection = ['--server', `https://127.0.0.1:${port}`, '--token', 'x', '--ca', join(directory, 'given.pem')];
      const token = formatJoinToken({ caFingerprint: ca.fingerprint, secret: newSecret() });
      const joining = ['agent', 'join', `https://127.0.0.1:${port}`, '--token', token, '--state', join(drover.directory, 'joining')];
      for (const args of [['ps', ...connection], ['run', ...connection, 'host', 'true'], joining]) {
        const { code, stderr } = await drover.run(args);
        const [, there = '', here = ''] = sentence.exec(stderr) ?? [];
        expect({ args, stderr, there: Number.isNaN(Date.parse(there)), here: Number.isNaN(Date.parse(here)) }).toEqual({
          args,
          stderr: expect.stringContaining('set the clock') as string,
          there: false,
          here: false,
        });
        expect(code).not.toBe(0);
      }
    } finally {
      server.close();
    }
  });
});

/** Errno names, stack traces, internal paths and names of calls. */
const internalWords =
  /\bE[A-Z]{3,}\b|\bERR_|\bat .*:\d+:\d+|\/src\/|node:|\/run\/sb-|\b(?:lstat|openat?|mkdir|scandir|syscall)\b '|\bundefined\b|\[object/;

describe('every command reports wrong input: the problem, its object, and the next step', () => {
  const program = buildProgram(async () => undefined);

  /** Returns every command that can be run. */
  function leafCommands(command = program): (typeof program)[] {
    const inner = command.commands.flatMap((child) => leafCommands(child));
    return command === program || command.registeredArguments.length > 0 || inner.length === 0
      ? [...(command === program ? [] : [command]), ...inner]
      : inner;
  }

  /** Returns the commands that a hint names, as a person would type them. */
  function namedCommands(hint: string): string[] {
    return [...hint.matchAll(/(?:\.\/)?\bdrover ((?:-{0,2}[a-z][a-z-]*|[A-Z]+)(?: (?:-{0,2}[a-z][a-z-]*|[A-Z]+|<[a-z]+>))*)/g)].map(
      ([, words = '']) => words,
    );
  }

  /** Expects that the commands and flags of a hint exist. */
  function checkHint(hint: string): void {
    for (const words of namedCommands(hint)) {
      const typed = words.split(' ');
      const { command } = locate(program, typed);
      expect({ hint, command: commandPath(command) }).not.toEqual({ hint, command: '' });
      const [first = '', second = ''] = typed;
      const group = program.commands.find(
        (child) => child.name() === first && child.commands.length > 0 && child.registeredArguments.length === 0,
      );
      if (group !== undefined && second !== '' && !second.startsWith('-')) {
        expect({ hint, commands: group.commands.map((child) => child.name()) }).toMatchObject({
          commands: expect.arrayContaining([second]) as string[],
        });
      }
      for (const flag of typed.filter((word) => word.startsWith('--') && word !== '--' && word !== '--help')) {
        const known = [command, ...command.commands].flatMap(({ options }) => options.map(({ long }) => long));
        expect({ hint, known }).toMatchObject({ known: expect.arrayContaining([flag]) as string[] });
      }
    }
  }

  function checkSentence(args: readonly string[], { code, stderr }: Finished): void {
    const line = args.join(' ');
    expect({ line, code }).not.toEqual({ line, code: 0 });
    expect({ line, stderr }).toEqual({
      line,
      stderr: expect.stringMatching(/^(?:drover: [^\n]+\n)*drover: [^\n]+\n {2}hint: [^\n]+\n$/) as string,
    });
    expect({ line, stderr: internalWords.exec(stderr)?.[0] }).toEqual({ line, stderr: undefined });
    for (const hint of stderr.matchAll(/hint: (.*)/g)) checkHint(hint[1] ?? '');
  }

  /** Returns a well-formed word for each required argument. It names no object. */
  function wrongArguments(command: typeof program): string[] {
    if (commandPath(command) === 'cp') return ['nosuch:/x', '-'];
    if (commandPath(command) === 'agent join') return ['https://127.0.0.1:1', '--token', 'wrong'];
    return command.registeredArguments
      .filter((argument) => argument.required || argument.name() === 'command')
      .map(
        (argument) =>
          ({ ports: '80', path: '/nonexistent', command: 'true', name: 'Not_A_Name', context: 'nosuch' })[argument.name()] ?? 'nosuch',
      );
  }

  /** Commands that run servers, or do not call the control plane. */
  const local = new Set([
    'up',
    'serve',
    'agent',
    'agent join',
    'completion',
    'doctor',
    'version',
    'context ls',
    'context use',
    'context add',
    'context rm',
  ]);
  const remote = leafCommands().filter((command) => !local.has(commandPath(command)));
  const withSize = (command: typeof program): string[] => (commandPath(command) === 'volume create' ? ['--size', '1g'] : []);
  const line = (command: typeof program, flags: readonly string[]): string[] => [
    ...commandPath(command).split(' '),
    ...flags,
    ...withSize(command),
    ...wrongArguments(command),
  ];

  /** Runs a command in this process. A separate process for each of these many runs would take a hundred times as long. */
  async function runInProcess(args: readonly string[]): Promise<Finished> {
    // `cp` reads its paths from the arguments of its own process, because they need not be UTF-8.
    if (args[0] === 'cp' || testsOtherCheckout) return await drover.run(args, { env: { CI: '1' } });
    const written = { stdout: '', stderr: '' };
    const spies = (['stdout', 'stderr'] as const).map((stream) =>
      vi.spyOn(process[stream], 'write').mockImplementation((text) => {
        written[stream] += String(text);
        return true;
      }),
    );
    try {
      return { code: await runCli(args, { ...process.env, ...drover.environment, CI: '1' }), ...written };
    } finally {
      for (const spy of spies) spy.mockRestore();
    }
  }

  test.each([
    [['cp', '-', 'web:/tmp'], 'the archive is not a readable tar: a number is not octal'],
    [['cp', '/nonexistent', 'web:/tmp'], '/nonexistent cannot be read: no such file or directory'],
    [['forward', 'web', '18082:80:80'], '"18082:80:80" is not a pair of ports'],
    [['forward', 'web', '192.0.2.1:8080:80'], 'cannot listen on 192.0.2.1:8080: address not available'],
    [['run', '--env-file', '/', 'host', 'true'], 'the environment file / cannot be read: it is a directory'],
    [['host', 'rm', 'near'], 'near still holds 1 sandbox: web'],
  ])('drover %j: %s', async (args, sentence) => {
    const outcome = await drover.run(args, { input: args[1] === '-' ? 'x'.repeat(2_000) : '' });
    expect(outcome.stderr.split('\n')[0]).toBe(`drover: ${sentence}`);
    checkSentence(args, outcome);
  });

  test.each(leafCommands().map((command) => [commandPath(command), command] as const))(
    'drover %s with an unknown flag',
    async (_path, command) => {
      checkSentence(['--no-such-flag'], await runInProcess([...commandPath(command).split(' '), '--no-such-flag']));
    },
  );

  test.each(remote.map((command) => [commandPath(command), command] as const))(
    'drover %s without permission, and with the wrong CA',
    async (_path, command) => {
      const { server } = await drover.connection();
      const wrongToken = line(command, ['--token', 'wrong']);
      checkSentence(wrongToken, await runInProcess(wrongToken));
      const wrongCa = line(command, ['--server', server, '--token', 'x', '--ca', '/etc/ssl/certs/ca-certificates.crt']);
      checkSentence(wrongCa, await runInProcess(wrongCa));
    },
  );

  const named = remote.filter((command) => wrongArguments(command).includes('nosuch') || commandPath(command) === 'cp');
  test.each(named.map((command) => [commandPath(command), command] as const))('drover %s with an unknown name', async (_path, command) => {
    const args = line(command, ['contain'].includes(command.name()) ? ['--pause'] : []);
    checkSentence(args, await runInProcess(args));
  });

  test.each([
    [['context', 'use', 'nosuch']],
    [['context', 'add', 'x']],
    [['completion', 'tcsh']],
    [['agent', 'join', 'https://127.0.0.1:1', '--token', 'wrong', '--state', '/etc/passwd/state']],
    [['agent', '--state', '/etc/passwd/state']],
    [['serve', '--data', '/etc/passwd/x', '--listen', '127.0.0.1:0']],
    [['up', '--data', '/etc/passwd/x', '--listen', '127.0.0.1:0']],
    [['up', '--config', '/nonexistent']],
    [['cp', 'web:/etc/hostname', '/nonexistent/directory/file']],
    [['cp', 'web:/nonexistent', '/tmp']],
    [['run', '--setup', '/', 'host', 'true']],
    [['run', '--secret', 'A=@/nonexistent', 'host', 'true']],
    [['run', 'dir:/etc/passwd', 'true']],
    [['run', 'oci-archive:/etc/passwd', 'true']],
    [['ps', '--ca', '/nonexistent', '--server', 'a', '--token', 'x']],
    [['ps', '--context', 'nosuch']],
    [['exec', '--workdir', '/nonexistent', 'web', 'true']],
    [['exec', '--user', 'nosuch', 'web', 'true']],
    [['sandbox', 'wait', 'web', '--for', 'nosuch']],
  ] as const)('drover %j', async (args) => {
    checkSentence(args, await runInProcess(args));
  });
});
