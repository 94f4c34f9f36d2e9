import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, isAlive, sharedDirectory, TestDrover, type Spec } from '../harness/index.ts';

interface SandboxJson {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly reason: string;
  readonly message: string;
  readonly startCount: number;
  readonly session: { readonly state: string; readonly since: string };
  readonly identity: { readonly thumbprint: string; readonly commonName: string };
  readonly init: { readonly state: string; readonly stepName?: string };
}

interface EventJson {
  readonly id: string;
  readonly kind: string;
  readonly type: string;
  readonly subject: string;
  readonly data: Readonly<Record<string, unknown>>;
}

let drover: TestDrover;
let shared: string;

/** Replaces ssh, so that the test needs no server: it connects to this machine's repository if the key exists. */
const transport = `#!/bin/sh
[ -f "$HOME/.ssh/deploy" ] || { echo "no key: ssh was not set up" >&2; exit 255; }
[ "$1" = git@origin ] || { echo "$1: Permission denied (publickey)." >&2; exit 255; }
exec sh -c "$2"
`;

/** Returns a setup with every built-in step, and a hook that counts its runs. */
const prepared = (post: string, server = 'origin'): Spec => ({
  image: 'host',
  env: [
    { name: 'HOME', value: '/root' },
    { name: 'GIT_SSH_COMMAND', value: '/root/transport' },
  ],
  mounts: [{ source: shared, target: '/shared' }],
  secrets: [],
  setup: {
    files: [
      { path: 'transport', source: { case: 'content', value: transport }, mode: 0o755 },
      { path: 'settings', source: { case: 'content', value: 'of the setup\n' } },
      { path: 'notes', source: { case: 'content', value: 'of the setup\n' } },
      { path: '.ssh/deploy', source: { case: 'content', value: 'KEY\n' }, mode: 0o600 },
    ],
    git: {
      config: { 'user.name': 'A Robot', 'safe.directory': '*' },
      clones: [{ url: `ssh://git@${server}/shared/origin.git`, path: 'project', ref: '' }],
    },
    ssh: { knownHosts: ['origin ssh-ed25519 AAAA'], keys: [], config: '' },
    postInit: `#!/bin/sh\n${post}\n`,
  },
});

const sandbox = async (name: string): Promise<SandboxJson> => await drover.sandbox<SandboxJson>(name);
const inside = async (name: string, script: string): Promise<string> => {
  const { code, stdout, stderr } = await drover.exec(name, ['sh', '-c', script]);
  if (code !== 0) throw new Error(`${script} ended with ${code}: ${stderr}`);
  return stdout;
};
const eventsOf = async (...args: readonly string[]): Promise<readonly EventJson[]> => {
  const { code, stdout, stderr } = await drover.run(['events', ...args, '-o', 'json']);
  if (code !== 0) throw new Error(`drover events ended with ${code}: ${stderr}`);
  return stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as EventJson);
};

async function killServe(): Promise<void> {
  const pid = await drover.pidOf('serve');
  process.kill(pid, 'SIGKILL');
  await eventually('serve has exited', () => !isAlive(pid));
  await eventually('the next control plane responds', async () => await drover.answers());
}

/** Kills the control plane and waits until each sandbox has its next session and a completed plan, or has ended. */
async function reconnect(names: readonly string[]): Promise<void> {
  const before = await Promise.all(names.map(sandbox));
  await killServe();
  for (const { name, session } of before) {
    await eventually(`${name} has its next session`, async () => {
      const now = await sandbox(name);
      const connected = now.session.state === 'connected' && now.session.since !== session.since;
      return now.state !== 'running' || (connected && now.init.state === 'completed');
    });
  }
}

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', '10.233.0.0/18'], async (directory) => {
    shared = await sharedDirectory(directory);
    return ['--allow-mount', shared];
  });
  const [work, bare] = [join(drover.directory, 'work'), join(shared, 'origin.git')];
  await mkdir(work);
  await writeFile(join(work, 'README'), 'from origin\n');
  const git = async (...args: readonly string[]): Promise<void> =>
    void (await execa('git', ['-C', work, '-c', 'user.name=t', '-c', 'user.email=t@example.org', ...args]));
  await git('init', '--quiet', '--initial-branch=main');
  await git('add', '.');
  await git('commit', '--quiet', '-m', 'one');
  await git('clone', '--quiet', '--bare', work, bare);
});
afterAll(async () => await drover[Symbol.asyncDispose]());

/** A workload's change to its prepared files, a command that shows the result, and its expected output. */
const changes: Readonly<Record<string, readonly [change: string, look: string, expected: string]>> = {
  remote: [
    'git -C project remote set-url origin https://elsewhere.example/x',
    'git -C project remote get-url origin',
    'https://elsewhere.example/x\n',
  ],
  directory: ['rm notes; mkdir notes; echo precious > notes/one', 'cat notes/one', 'precious\n'],
  web: [
    'echo mine > settings; git config --global user.name Somebody; rm .ssh/known_hosts',
    'cat settings; git config --global user.name; ls -A .ssh',
    'mine\nSomebody\ndeploy\n',
  ],
};

describe('I-32: a reconnect leaves a prepared workload unchanged', () => {
  let before: readonly EventJson[];

  beforeAll(async () => {
    await Promise.all(
      Object.entries(changes).map(async ([name, [change]]) => {
        await drover.begin(name, ['sh', '-c', 'echo begun; sleep 1d'], prepared(`echo ran >> /shared/${name}`));
        // I-29: the clone step follows the ssh step, whose transport it uses.
        expect(await inside(name, `cat /root/project/README; cd /root; ${change}`)).toBe('from origin\n');
      }),
    );
    before = await eventsOf('--subject', (await sandbox('web')).id, '--kind', 'init,identity');
    for (let i = 0; i < 2; i++) await reconnect(Object.keys(changes));
  });

  test.each(Object.entries(changes))('%s', async (name, [, look, expected]) => {
    const { state, message, ...seen } = await sandbox(name);
    expect({ state, message: state === 'running' ? '' : message }).toEqual({ state: 'running', message: '' });
    expect(await inside(name, `cd /root; ${look}`)).toBe(expected);
    expect(seen).toMatchObject({ startCount: 1, init: { state: 'completed' } });
    expect(await drover.logs(name)).toBe('begun\n');
    expect(await readFile(join(shared, name), 'utf8')).toBe('ran\n');
  });

  test('I-34: neither the plan nor the registration repeats its events', async () => {
    expect(await eventsOf('--subject', (await sandbox('web')).id, '--kind', 'init,identity')).toEqual(before);
    expect(before.filter(({ type }) => type === 'AgentRegistered')).toHaveLength(1);
  });
});

describe('I-32: a reconnect in the middle of a plan', () => {
  test('runs the missing steps, and no other', async () => {
    const post = 'echo changed > /root/settings; echo began >> /shared/half; until [ -e /shared/go ]; do sleep 0.1; done';
    await drover.create('half', ['sleep', '1d'], prepared(post));
    await eventually('the hook runs', async () => (await readFile(join(shared, 'half'), 'utf8').catch(() => '')) === 'began\n');
    await killServe();
    await drover.saw((await sandbox('half')).id, ['session'], (types) => types.filter((type) => type === 'SessionConnected').length === 2);
    await writeFile(join(shared, 'go'), '');
    const waited = await drover.run(['sandbox', 'wait', '--for', 'running', 'half']);
    expect(waited).toMatchObject({ code: 0, stdout: 'running\n' });
    expect(await inside('half', 'cat /root/settings /shared/half')).toBe('changed\nbegan\n');
    const steps = (await eventsOf('--subject', 'half', '--kind', 'init')).filter(({ type }) => type === 'InitStepStarted');
    expect(steps.map(({ data }) => `${String(data['index'])}/${String(data['count'])} ${String(data['step'])}`)).toEqual([
      '1/6 config',
      '2/6 git',
      '3/6 ssh',
      '4/6 clone',
      '5/6 post-init',
      // The second control plane joined the hook.
      '5/6 post-init',
      '6/6 agent-ready',
    ]);
  });
});

describe('a new start', () => {
  test('applies files, git settings and ssh again, and leaves a repository unchanged', async () => {
    await inside('web', 'git -C /root/project remote set-url origin https://elsewhere.example/x');
    await drover.stop('web');
    expect(await drover.run(['sandbox', 'start', 'web'])).toMatchObject({ code: 0, stdout: 'web\n' });
    const look = 'cd /root; cat settings notes; git -C project remote get-url origin; git config --global user.name; cat .ssh/known_hosts';
    expect(await inside('web', look)).toBe('of the setup\nof the setup\nhttps://elsewhere.example/x\nA Robot\norigin ssh-ed25519 AAAA\n');
    expect(await readFile(join(shared, 'web'), 'utf8')).toBe('ran\nran\n');
    const registered = (await eventsOf('--subject', 'web', '--kind', 'identity')).filter(({ type }) => type === 'AgentRegistered');
    expect(registered.map(({ data }) => [data['ok'], data['startCount'], data['name']])).toEqual([
      [true, 1, 'web'],
      [true, 2, 'web'],
    ]);
  });

  test('fails, with the reason, where the workload replaced a file by a directory', async () => {
    await inside('web', 'rm /root/settings; mkdir /root/settings; echo precious > /root/settings/one');
    await drover.stop('web');
    const started = await drover.run(['sandbox', 'start', 'web']);
    expect(started).toMatchObject({ code: 1, stdout: '' });
    expect(started.stderr).toMatch(/the init plan of web failed at step 1 of 6, config: exit 1: .*\/root\/settings cannot be made/);
    // Nothing is lost: the directory belongs to the workload.
    expect(await sandbox('web')).toMatchObject({ state: 'failed', reason: 'init-failed' });
  });
});

describe('I-30: a start whose plan fails is reported as failed', () => {
  const setup = `git:
  clones:
    - url: ssh://git@stranger/shared/origin.git
      path: project
files:
  - path: transport
    mode: "0755"
    content: |
${transport.replaceAll(/^/gm, '      ').trimEnd()}
ssh:
  knownHosts: [origin ssh-ed25519 AAAA]
`;
  const why = /clone: exit 1: drover-step clone: .* cannot be cloned: git@stranger: Permission denied \(publickey\)\.; fatal: /;
  let args: readonly string[];

  beforeAll(async () => {
    const file = join(drover.directory, 'setup.yaml');
    await writeFile(file, `${setup}  keys: [deploy]\n`);
    const env = ['HOME=/root', 'GIT_SSH_COMMAND=/root/transport'].flatMap((variable) => ['--env', variable]);
    args = ['--setup', file, '--secret-file', 'deploy', ...env, '-v', `${shared}:/shared`, 'host', '--', 'sleep', '1d'];
  });

  test.each([
    ['create', ['sandbox', 'create']],
    ['run -d', ['run', '-d']],
  ])('by %s, with the output of git and ssh', async (_, verb) => {
    const name = `fails-${verb.length}-${verb[0]}`;
    const made = await drover.run([...verb, '--name', name, ...args], { env: { deploy: 'KEY' } });
    expect(made.code).not.toBe(0);
    expect(made.stdout).toBe('');
    expect(made.stderr).toMatch(why);
    expect(made.stderr).not.toContain('the repository exists');
    expect(await sandbox(name)).toMatchObject({ state: 'failed', reason: 'init-failed' });
  });

  test('by wait --for running, and by start', async () => {
    await drover.create('later', ['sleep', '1d'], prepared('true', 'stranger'));
    for (const command of [
      ['sandbox', 'wait', '--for', 'running', 'later'],
      ['sandbox', 'start', 'later'],
    ]) {
      const { code, stdout, stderr } = await drover.run(command);
      expect({ command, stdout, failed: code !== 0 }).toEqual({ command, stdout: '', failed: true });
      expect(stderr).toMatch(/git@stranger: Permission denied/);
    }
    const json = await drover.run(['sandbox', 'start', 'later', '-o', 'json']);
    expect(json.code).not.toBe(0);
    expect(JSON.parse(json.stderr)).toMatchObject({ error: { message: expect.stringMatching(/init plan of later failed/) } });
  });
});

describe('names of a sandbox', () => {
  test('every event of it carries its name; --subject accepts the name, and --tail starts with the last events', async () => {
    const events = await eventsOf('--subject', (await sandbox('web')).id);
    expect(new Set(events.map(({ kind }) => kind))).toEqual(new Set(['sandbox', 'session', 'identity', 'init']));
    expect(events.filter(({ data }) => data['name'] !== 'web')).toEqual([]);
    expect(await eventsOf('--subject', 'web')).toEqual(events);
    expect(await eventsOf('--subject', 'web', '--tail', '3')).toEqual(events.slice(-3));
    const init = events.filter(({ kind }) => kind === 'init');
    expect(await eventsOf('--subject', 'web', '--kind', 'init', '--tail', '2')).toEqual(init.slice(-2));
    expect((await drover.run(['events', '--tail', '1', '--subject', 'web', '--kind', 'session'])).stdout).toMatch(/ {2}web: /);
  });

  test('an unknown subject is an error with a hint', async () => {
    const { code, stdout, stderr } = await drover.run(['events', '--subject', 'nowhere']);
    expect({ code, stdout }).toEqual({ code: 3, stdout: '' });
    expect(stderr).toBe(
      'drover: there is no sandbox or host "nowhere", and no event of one is retained\n  hint: `drover sandbox ls --all` and `drover host ls --all` list them\n',
    );
  });

  test('sandbox get and identity get accept every name that identity ls prints', async () => {
    const { id } = await drover.begin<SandboxJson>('named', ['sleep', '1d']);
    const line = (await drover.run(['identity', 'ls'])).stdout.split('\n').find((text) => text.includes(id)) ?? '';
    const [commonName = '', , thumbprint = ''] = line.split(/\s+/);
    const { thumbprint: whole } = (await sandbox('named')).identity;
    expect([commonName, whole.startsWith(thumbprint)]).toEqual(['named', true]);
    for (const reference of [commonName, id, thumbprint, whole]) {
      expect(await drover.json(['sandbox', 'get', reference])).toMatchObject({ id });
      expect(await drover.json(['identity', 'get', reference])).toMatchObject({ sandboxId: id });
    }
  });
});

describe('a waiting command that another one overtakes', () => {
  test('a stop that a start overtakes reports the start', async () => {
    await drover.begin('slow', ['sh', '-c', 'trap "" TERM; echo up; while :; do sleep 1; done'], { image: 'host', stopGraceMs: 2_000 });
    await eventually('it ignores SIGTERM', async () => (await drover.logs('slow')) === 'up\n');
    const stopping = drover.run(['sandbox', 'stop', 'slow']);
    await eventually('it stops', async () => (await sandbox('slow')).state === 'stopping');
    expect(await drover.run(['sandbox', 'start', 'slow'])).toMatchObject({ code: 0 });
    const { code, stderr } = await stopping;
    expect(code).toBe(4);
    expect(stderr).toMatch(/^drover: sandbox slow was started again while this command waited for it\n {2}hint: /m);
  });
});
