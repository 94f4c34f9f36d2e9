import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { errorCodes, version } from '@drover/foundation';

const main = join(import.meta.dirname, 'main.ts');
const flags = ['--conditions=development', '--disable-warning=ExperimentalWarning'];
let home: string;

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'drover-cli-'));
});
afterAll(() => rm(home, { recursive: true }));

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** The program as a person runs it, with a home of its own. */
function drover(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = execFile(
      process.execPath,
      [...flags, '--', main, ...args],
      { env: { PATH: process.env['PATH'], HOME: home, NODE_COMPILE_CACHE: join(home, 'compile-cache'), ...env }, timeout: 60_000 },
      (_, stdout, stderr) => resolve({ code: child.exitCode ?? -1, stdout, stderr }),
    );
    child.stdin?.end();
  });
}

describe.concurrent('bad input: one sentence, what to do, a status that means something', { timeout: 90_000 }, () => {
  test.each([
    [['sandbx', 'ls'], 2, /unknown command 'sandbx'/, /Did you mean sandbox\?/],
    [['sandbox', 'lst'], 2, /unknown command 'lst'/, /Did you mean/],
    [['help', 'sandbx'], 2, /unknown command 'sandbx'/, /Did you mean sandbox\?/],
    [['sandbox', 'help', 'creat'], 2, /unknown command 'creat'/, /Did you mean create\?/],
    [['help', 'sandbox', 'zzz'], 2, /unknown command 'zzz'/, /drover sandbox --help lists/],
    [['sandbox'], 2, /needs a subcommand/, /drover sandbox --help/],
    [['sandbox', 'get'], 2, /missing required argument 'sandbox'/, /--help/],
    [['sandbox', 'ls', '-o', 'yaml'], 2, /argument 'yaml' is invalid/, /./],
    [['run'], 125, /missing required argument 'image'/, /drover run --help/],
    [['run', '--memroy', '1g', 'host'], 125, /unknown option '--memroy'/, /--memory/],
    [['run', 'host', '--all'], 125, /the command begins with "--all"/, /flags of drover itself stand before IMAGE/],
    [['exec', 'box', '-t', 'sh'], 125, /the command begins with "-t"/, /before SANDBOX/],
    [['run', '--memory', 'lots', 'host'], 125, /"lots" is not a size/, /512m/],
    [['run', '--memory', '1k', 'host'], 125, /--memory "1k" is too small/, /at least 16\.0 MiB/],
    [
      ['run', '--memory', '64m', '--shm-size', '1g', 'host'],
      125,
      /--shm-size "1g" is more than the memory limit, --memory "64m"/,
      /--shm-size/,
    ],
    [['volume', 'create', 'data', '--size', '1'], 2, /--size "1" is too small/, /at least 16\.0 MiB/],
    [['volume', 'create', 'data', '--size', '99t'], 2, /--size "99t" is too large/, /at most 16\.0 TiB/],
    [['run', '--cpus', '-1', 'host'], 125, /not a number of CPUs|argument missing/, /./],
    [['run', '--pids', 'x', 'host'], 125, /--pids "x" is not a number/, undefined],
    [['run', '--name', 'No_Good', 'host'], 125, /"No_Good" cannot be a name/, /lower-case/],
    [['run', '--env', '1=2', 'host'], 125, /cannot be the name of an environment variable/, /NAME=value/],
    [['run', '--env-file', '/nonexistent', 'host'], 125, /\/nonexistent cannot be read: no such file or directory/, undefined],
    [['run', '--volume', 'x', 'host'], 125, /"x" is not a volume/, /SOURCE:TARGET/],
    [['run', '--allow', 'https://a/', 'host'], 125, /"https:\/\/a\/" cannot be allowed/, /example\.org/],
    [['run', '--ttl', 'soon', 'host'], 125, /"soon" is not a duration/, /30s/],
    [['run', '--ttl', '4000d', 'host'], 125, /--ttl "4000d" is too long/, /3650d/],
    [['run', '--stop-grace', '61m', 'host'], 125, /--stop-grace "61m" is too long/, /0s to 1h/],
    [['stop', '--grace', '100d', 'web'], 2, /--grace "100d" is too long/, /0s to 1h/],
    [['run', ''], 125, /"" is not an image reference/, /host/],
    [['exec', 'box'], 125, /no command was given/, /drover exec box -- sh/],
    [['exec', '--linger', 'soon', 'box', 'ls'], 125, /"soon" is not a duration/, /30s/],
    [['exec', 'kill', '--signal', 'FOO', 'box', 'id'], 2, /"FOO" is not a signal/, /SIGRTMIN\+3/],
    [['exec', 'kill', 'box'], 2, /missing required argument 'exec'/, /drover exec kill --help/],
    [['exec', 'ls', 'box', 'more'], 2, /too many arguments/, /drover exec ls --help/],
    [['sandbox', 'wait', 'box', '--for', 'done'], 2, /there is no state "done"/, /running/],
    [['cp', 'a', 'b'], 2, /one side must be in a sandbox/, /SANDBOX:PATH/],
    [['cp', 'x:a', 'y:b'], 2, /one side must be in a sandbox/, /SANDBOX:PATH/],
    [['forward', 'box', 'http'], 2, /"http" is not a pair of ports/, /8080:80/],
    [['events', '--since', 'yesterday'], 2, /is not the id of an event/, /id of the last event/],
    [['events', '--tail', 'few'], 2, /--tail "few" is not a number of events/, /such as --tail 20/],
    [['events', '--tail', '2', '--since', '3'], 2, /--since and --tail exclude each other/, /use one of them/],
    [['run', '--setup', '/nonexistent', 'host'], 125, /--setup \/nonexistent cannot be read: no such file or directory/, /name a file/],
    [
      ['sandbox', 'create', '--post-init', '/nonexistent', 'host'],
      2,
      /--post-init \/nonexistent cannot be read: no such file or directory/,
      /name a file/,
    ],
    [['sandbox', 'contain', 'box'], 2, /at least one of --cut-network, --pause, --kill and --revoke/, /--cut-network/],
    [['identity', 'evct', 'box'], 2, /unknown command 'evct'/, /evict/],
    [['completion', 'tcsh'], 2, /there is no completion for "tcsh"/, /bash\|zsh\|fish/],
    [['up', '--listen', 'here'], 2, /"here" is not an address to listen on/, /HOST:PORT/],
    [['agent', 'join', 'https://a'], 2, /no join token was given/, /drover host token/],
    [['agent', '--standbys', '-1'], 2, /--standbys "-1" is not a number of sandboxes/, /give 0 to 256/],
    [['agent', '--standbys', '257'], 2, /--standbys "257" is not a number of sandboxes/, /give 0 to 256/],
    [['agent', '--name', 'Bad_N'], 2, /"Bad_N" cannot be a host's name/, /letters, digits, dots and hyphens/],
    [['agent', '--runtime-program', 'nosuch'], 6, /--runtime-program "nosuch" is not installed/, /runc, crun/],
    [['agent', '--registry-credentials', '/nonexistent'], 2, /\/nonexistent cannot be read: no such file/, /readable file/],
    [['serve', '--public-host', 'http://x'], 2, /--public-host "http:\/\/x" is not a name or an address/, /without scheme/],
    [['agent', '--reconnect-max', '1ms'], 2, /--reconnect-max "1ms" is too short/, /500ms to 10m/],
    [['sandbox', 'ls', '--server', 'http://a', '--token', 'x'], 2, /not the address of a control plane/, /https:/],
    [['stats'], 2, /unknown command 'stats'/, /drover top/],
    [['login'], 2, /unknown command 'login'/, /--registry-credentials/],
    [['port', 'box'], 2, /unknown command 'port'/, /drover forward/],
    [['wait', 'box'], 2, /unknown command 'wait'/, /drover sandbox wait/],
    [['pause', 'box'], 2, /unknown command 'pause'/, /drover sandbox pause/],
    [['unpause', 'box'], 2, /unknown command 'unpause'/, /drover sandbox resume/],
    [['run', '-p', '8080:80', 'host'], 125, /unknown option '-p'/, /drover forward/],
    [['run', '-p8080:80', 'host'], 125, /unknown option '-p/, /drover forward/],
    [['run', '--publish=8080:80', 'host'], 125, /unknown option '--publish/, /drover forward/],
    [['run', '--network', 'none', 'host'], 125, /unknown option '--network'/, /--allow/],
    [['run', '--privileged', 'host'], 125, /unknown option '--privileged'/, /docs\/inside\.md/],
    [['kill', '-s', 'HUP', 'box'], 2, /unknown option '-s'/, /drover exec SANDBOX -- kill -s SIGNAL PID/],
    [['stop', '-t', 'soon', 'box'], 2, /"soon" is not a duration/, /30s/],
    [['context', 'use', 'nosuch'], 3, /there is no context "nosuch"/, /drover context add/],
    [['context', 'rm', 'nosuch'], 3, /there is no context "nosuch"/, /drover context add/],
    [['ps', '--context', 'zz'], 3, /there is no context "zz"/, /drover context add/],
    [['sandbox', 'ls'], 4, /no control plane is known/, /drover up/],
    [['sandbox', 'ls', '--server', 'a'], 5, /no token for https:\/\/a:7443/, /--token/],
    [
      ['sandbox', 'ls', '--server', '127.0.0.1:1', '--token', 'x'],
      6,
      /cannot reach the control plane at 127\.0\.0\.1:1: nothing listens there \(waited \ds for the control plane\)/,
      /start one with drover up, or name another with --context or --server/,
    ],
    [['run', '--server', '127.0.0.1:1', '--token', 'x', 'host'], 125, /cannot reach the control plane/, /drover up/],
  ])('%j', async (args, code, sentence, hint) => {
    const outcome = await drover(args);
    // A command waits for a control plane that may be starting, and says so.
    const lines = outcome.stderr.trimEnd().split('\n');
    const [first = '', second, ...rest] = lines.filter((line) => !line.startsWith('drover: waiting for the control plane: '));
    expect(first).toMatch(/^drover: /);
    expect(first).toMatch(sentence);
    if (hint !== undefined) expect(second).toMatch(/^ {2}hint: /);
    if (hint !== undefined) expect(second).toMatch(hint);
    expect(rest).toEqual([]);
    expect(outcome.stdout).toBe('');
    expect(outcome.code).toBe(code);
  });

  test('with -o json the error is an object on stderr', async () => {
    const { stderr, code } = await drover(['sandbox', 'ls', '-o', 'json']);
    expect(JSON.parse(stderr)).toEqual({
      error: { code: 'failed-precondition', message: 'no control plane is known', hint: expect.stringContaining('drover up') },
    });
    expect(code).toBe(4);
  });

  test('with -o json a wrong flag is an object too', async () => {
    const { stderr } = await drover(['sandbox', 'ls', '--hots', 'a', '-o', 'json']);
    expect(JSON.parse(stderr)).toMatchObject({ error: { code: 'invalid-argument', hint: expect.stringContaining('--host') } });
  });

  test('names only, and objects, are not one output', async () => {
    const { stderr, code } = await drover(['ps', '-q', '-o', 'json']);
    expect(JSON.parse(stderr)).toMatchObject({ error: { code: 'invalid-argument', message: expect.stringContaining('--quiet') } });
    expect(code).toBe(2);
  });

  test.each([
    [
      ['help', 's'],
      ['sandbox', 'serve', 'start', 'stop'],
    ],
    [['help', 'sandbox', 'con'], ['contain']],
    [['help', 'nothing', 's'], []],
    [
      ['events', '--kind', 's'],
      ['sandbox', 'session'],
    ],
    [
      ['events', '--kind=i'],
      ['--kind=identity', '--kind=init'],
    ],
  ])('completes %j', async (words, completed) => {
    const { stdout } = await drover(['complete', 'words', ...words]);
    const lines = stdout.split('\n').filter((line) => line !== '' && !line.startsWith(':'));
    expect(lines.map((line) => line.split('\t')[0] ?? '').toSorted()).toEqual(completed);
  });

  test('a context file that is broken is named', async () => {
    const config = await mkdtemp(join(home, 'config-'));
    const path = join(config, 'drover');
    await import('node:fs/promises').then(({ mkdir }) => mkdir(path));
    await writeFile(join(path, 'context.json'), 'x');
    const { stderr, code } = await drover(['host', 'ls'], { XDG_CONFIG_HOME: config });
    expect(stderr).toContain(join(path, 'context.json'));
    expect(code).toBe(2);
  });

  test('R-1: up on a port that another program has says so, and leaves nothing running', async () => {
    const holder = createServer();
    await new Promise<void>((resolve) => holder.listen(0, '127.0.0.1', resolve));
    try {
      const { port } = holder.address() as AddressInfo;
      const data = await mkdtemp(join(home, 'data-'));
      const { stderr, code } = await drover(['up', '--no-agent', '--data', data, '--listen', `127.0.0.1:${port}`]);
      expect(stderr).toContain(`port: 127.0.0.1:${port} is in use by another program`);
      expect(stderr).toContain('--listen');
      expect(code).toBe(6);
    } finally {
      holder.close();
    }
  });
});

describe.concurrent('what needs no control plane', { timeout: 90_000 }, () => {
  test('--version and help are on stdout, with 0', async () => {
    expect(await drover(['--version'])).toEqual({ code: 0, stdout: `${version}\n`, stderr: '' });
    for (const args of [[], ['--help'], ['help'], ['run', '--help'], ['sandbox', 'ls', '--help']]) {
      const { code, stdout, stderr } = await drover(args);
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      expect(stdout).toContain('Usage: drover');
    }
  });

  test.each([[['help', 'sandbox', 'create']], [['sandbox', 'help', 'create']], [['sb', 'help', 'create']]])(
    '%j is the help of create',
    async (args) => {
      const { code, stdout } = await drover(args);
      expect([code, stdout]).toEqual([0, (await drover(['sandbox', 'create', '--help'])).stdout]);
      expect(stdout).toContain('Usage: drover sandbox create');
    },
  );

  test.each([[['help', 'run']], [['run', '--help']], [[]], [['--version']]])('%j ends quietly when its reader has ended', async (args) => {
    const child = spawn(process.execPath, [...flags, '--', main, ...args], { stdio: ['ignore', 'pipe', 'pipe'], env: { HOME: home } });
    child.stdout.destroy();
    const [stderr, [code]] = await Promise.all([text(child.stderr), once(child, 'close')]);
    expect([code, stderr]).toEqual([0, '']);
  });

  test.each([
    [['up'], '(/var/lib/drover; ~/.local/share/drover when not root)'],
    [['agent'], '(/var/lib/drover/host; ~/.local/share/drover/host when not root)'],
    [['exec'], 'Usage: drover exec [options] <sandbox> [command...]'],
    [['run'], 'disk size: 512m, 2g'],
    [['stop'], '-t, --grace <duration>'],
    [['logs'], '-n, --tail <lines>'],
    [['volume', 'inspect'], 'Usage: drover volume get|inspect'],
  ])('the help of %j has %j', async (args, part) => {
    const { stdout } = await drover([...args, '--help'], { COLUMNS: '200' });
    expect(stdout.replace(/\s+/g, ' ')).toContain(part);
  });

  test('R-3: help lists every exit status that an error can have', async () => {
    for (const args of [[], ['--help']]) {
      const { stdout } = await drover(args);
      for (const { exit } of Object.values(errorCodes)) expect(stdout).toContain(` ${exit}: `);
    }
  });

  test.each([
    [['-o', 'json', 'pss'], /Did you mean ps/],
    [['drover', 'ps'], /drover --help lists/],
    [['sandbox', '-o', 'json', 'ls'], /drover sandbox --help lists/],
    [['--server', 'a', 'image', 'pull'], /drover image pull --help lists/],
    [['run', '--wrong-flag', '--', 'x'], /drover run --help lists/],
  ])('a usage error of %j names the help of the command that was meant', async (args, hint) => {
    expect((await drover(args)).stderr).toMatch(hint);
  });

  test('nothing is loaded that the command does not need: --version leaves the SDK, the agent and the server alone', async () => {
    const program = `process.argv = ['node', 'main', '--version'];
      process.on('exit', () => console.error(JSON.stringify(process.moduleLoadList.length)));
      const { registerHooks } = await import('node:module');
      registerHooks({ load: (url, context, next) => { if (/packages\\/(sdk|agent|control-plane|supervisor)\\/|connectrpc|listr2|clack/.test(url)) console.error('loaded ' + url); return next(url, context); } });
      await import('${main}');`;
    const outcome = await new Promise<string>((resolve) =>
      execFile(process.execPath, [...flags, '--input-type=module', '-e', program], (_, __, stderr) => resolve(stderr)),
    );
    expect(outcome).not.toMatch(/loaded/);
  });
});
