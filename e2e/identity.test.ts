import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, HostNetwork, isAlive, sharedDirectory, TestDrover, tracesOf } from './harness/index.ts';

interface SandboxJson {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly reason: string;
  readonly message: string;
  readonly exitCode?: number;
  readonly startCount: number;
  readonly identity: {
    readonly thumbprint: string;
    readonly commonName: string;
    readonly registeredAt: string;
    readonly lastSeenAt: string;
    readonly verdict: string;
    readonly reason: string;
  };
  readonly session: { readonly state: string; readonly attempts: number; readonly lastError: string };
  readonly init: {
    readonly state: string;
    readonly step: number;
    readonly count: number;
    readonly stepName: string;
    readonly reason: string;
    readonly exitCode?: number;
    readonly stderr: string;
  };
  readonly containment?: { readonly networkCut: boolean; readonly paused: boolean; readonly killed: boolean; readonly revoked: boolean };
}

interface EventJson {
  readonly id: number;
  readonly kind: string;
  readonly type: string;
  readonly subject: string;
  readonly data: Readonly<Record<string, unknown>>;
}

const checks = ['chain', 'validity', 'eku', 'cn', 'san', 'thumbprint', 'registry', 'host', 'peer-address'];
/** A command that runs until it is stopped. */
const idle = ['sleep', '600'];

let drover: TestDrover;
let world: HostNetwork;
let shared: string;

const sandbox = async (name: string): Promise<SandboxJson> => await drover.sandbox<SandboxJson>(name);

async function succeeds(args: readonly string[], timeoutMs?: number): Promise<string> {
  const { code, stdout, stderr } = await drover.run(args, timeoutMs === undefined ? {} : { timeoutMs });
  expect({ args, code, stderr: code === 0 ? '' : stderr }).toEqual({ args, code: 0, stderr: '' });
  return stdout;
}

/** Polls a sandbox until it satisfies the condition. A failure shows its last state. */
async function sandboxIs(name: string, description: string, isExpected: (row: SandboxJson) => boolean): Promise<SandboxJson> {
  let row: SandboxJson | undefined;
  return await eventually(
    `${name} is ${description}`,
    async () => {
      row = await sandbox(name);
      return isExpected(row) ? row : undefined;
    },
    30_000,
    () => row,
  );
}

async function eventsOf(subject: string, kinds = 'session,identity,init'): Promise<readonly EventJson[]> {
  const stdout = await succeeds(['events', '--since', '0', '--subject', subject, '--kind', kinds, '-o', 'json']);
  return linesOf(stdout);
}

function linesOf(text: string): readonly EventJson[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as EventJson);
}

beforeAll(async () => {
  world = await HostNetwork.create('10.222.255', { firewall: false });
  drover = await TestDrover.start(['--pool', '10.222.0.0/18'], async (directory) => {
    shared = await sharedDirectory(directory);
    return ['--allow-mount', shared];
  });
});

afterAll(async () => {
  await using _world = world;
  const left = await tracesOf(drover);
  await drover[Symbol.asyncDispose]();
  expect(await left()).toEqual([]);
});

describe('the identity of a sandbox in the CLI', () => {
  test('I-5, I-7, I-13: a sandbox is registered under its canonical name, and its session is trusted', async () => {
    await succeeds(['run', '-d', '--name', 'seen', '--project', 'lab', 'host', '--', ...idle]);
    const row = await sandbox('lab/seen');
    expect(row).toMatchObject({
      identity: { commonName: 'lab.seen', verdict: 'trusted' },
      session: { state: 'connected' },
      init: { state: 'completed' },
    });
    expect(row.identity.thumbprint).toMatch(/^[0-9a-f]{64}$/);
    const human = await succeeds(['sandbox', 'get', 'lab/seen']);
    for (const word of ['lab.seen', row.identity.thumbprint.slice(0, 12), 'connected', 'completed']) expect(human).toContain(word);
  });

  test('explain shows every check with its evidence, and all pass', async () => {
    const { code, stdout } = await drover.run(['sandbox', 'explain', 'lab/seen', '-o', 'json']);
    const { checks: made } = JSON.parse(stdout) as { checks: { check: string; verdict: string; evidence: string; madeAt: string }[] };
    expect(new Set(made.map(({ check }) => check))).toEqual(new Set(checks));
    expect(made.filter(({ verdict }) => !/pass/i.test(verdict))).toEqual([]);
    for (const { evidence, madeAt } of made) {
      expect(evidence).not.toBe('');
      expect(Date.parse(madeAt)).toBeGreaterThan(Date.now() - 600_000);
    }
    expect(code).toBe(0);
  });

  test('I-10, I-11: identity ls and get; a stop evicts no identity, a restart brings a new certificate, a removal evicts', async () => {
    interface IdentityJson {
      readonly sandboxId: string;
      readonly thumbprint: string;
      readonly commonName: string;
    }
    const all = async (): Promise<readonly IdentityJson[]> => await drover.json<IdentityJson[]>(['identity', 'ls']);
    const first = await drover.begin<SandboxJson>('comes-and-goes', idle);
    const mine = async (): Promise<readonly IdentityJson[]> => (await all()).filter(({ sandboxId }) => sandboxId === first.id);
    expect(await mine()).toMatchObject([{ thumbprint: first.identity.thumbprint, commonName: 'comes-and-goes' }]);
    expect(await drover.json(['identity', 'get', first.identity.thumbprint])).toMatchObject({ sandboxId: first.id });

    await drover.stop('comes-and-goes');
    expect(await mine()).toMatchObject([{ thumbprint: first.identity.thumbprint }]);
    await drover.restart('comes-and-goes');
    const again = await sandboxIs(
      'comes-and-goes',
      'trusted after the restart',
      (row) => row.startCount === 2 && row.init.state === 'completed',
    );
    expect(again.identity.thumbprint).not.toBe(first.identity.thumbprint);
    expect(await mine()).toMatchObject([{ thumbprint: again.identity.thumbprint }]);

    await drover.remove('comes-and-goes');
    expect(await mine()).toEqual([]);
  });

  test('I-11: eviction ends the session of an identity; the next session works and is untrusted', async () => {
    const { identity } = await drover.begin<SandboxJson>('evicted', idle);
    await succeeds(['identity', 'evict', 'evicted']);
    const row = await sandboxIs('evicted', 'untrusted', (now) => now.identity.verdict === 'untrusted' && now.session.state === 'connected');
    expect(row.identity.thumbprint).toBe('');
    const shown = await drover.run(['sandbox', 'explain', 'evicted', '-o', 'json']);
    expect(shown.code).toBe(1);
    expect(JSON.parse(shown.stdout)).toMatchObject({
      checks: expect.arrayContaining([expect.objectContaining({ check: 'registry', verdict: expect.stringMatching(/fail/i) })]),
    });
    // I-1: an untrusted sandbox stays reachable, and its command keeps running.
    expect(await drover.exec('evicted', ['echo', 'reached'])).toMatchObject({ code: 0, stdout: 'reached\n' });
    // A new start has a new certificate.
    await drover.stop('evicted');
    await drover.restart('evicted');
    const restarted = await sandboxIs('evicted', 'trusted', (now) => now.identity.verdict === 'trusted');
    expect(restarted.identity.thumbprint).not.toBe(identity.thumbprint);
  });
});

describe('I-29 to I-32: the init plan', () => {
  const setup = `
files:
  - path: notes/hello.txt
    content: "hello from setup\\n"
    mode: "0640"
  - path: token
    secret: API_TOKEN
git:
  config:
    user.name: A Robot
    user.email: robot@example.org
ssh:
  knownHosts:
    - example.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGNoYWxsZW5nZQ
  keys: [API_TOKEN]
postInit: |
  #!/bin/sh
  echo "post-init $(cut -d' ' -f22 /proc/1/stat)" >> /shared/planned
`;

  const planned = async (): Promise<readonly string[]> =>
    (await readFile(join(shared, 'planned'), 'utf8')).split('\n').filter((line) => line !== '');

  test('config, git, ssh and post-init are done before the command starts, and the command finds their results', async () => {
    const file = join(drover.directory, 'setup.yaml');
    await writeFile(file, setup);
    const script =
      'cd; cat notes/hello.txt; stat -c %a notes/hello.txt token .ssh .ssh/API_TOKEN; git config --global user.name; cat .ssh/known_hosts; grep -c post-init /shared/planned; sleep 600';
    const made = await drover.run(
      [
        'run',
        '-d',
        '--name',
        'planned',
        '--setup',
        file,
        '--secret',
        'API_TOKEN',
        '--volume',
        `${shared}:/shared`,
        '--env',
        'HOME=/root',
        'host',
        '--',
        'sh',
        '-c',
        script,
      ],
      { env: { API_TOKEN: 's3cret' } },
    );
    expect({ code: made.code, stderr: made.code === 0 ? '' : made.stderr }).toEqual({ code: 0, stderr: '' });
    const expected = [
      'hello from setup',
      '640',
      '600',
      '700',
      '600',
      'A Robot',
      'example.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGNoYWxsZW5nZQ',
      '1',
    ];
    await eventually('the command has printed', async () => (await drover.logs('planned')).split('\n').length > expected.length);
    expect((await drover.logs('planned')).trimEnd().split('\n')).toEqual(expected);
    const types = (await eventsOf((await sandbox('planned')).id)).map(({ type, data }) =>
      type.startsWith('InitStep') ? `${type} ${String(data['index'])}/${String(data['count'])} ${String(data['step'])}` : type,
    );
    const steps = ['config', 'git', 'ssh', 'post-init', 'agent-ready'];
    expect(types.filter((type) => type.startsWith('Init') || type === 'AgentRegistered')).toEqual([
      'AgentRegistered',
      'InitStarted',
      ...steps.flatMap((step, index) => [`InitStepStarted ${index + 1}/5 ${step}`, `InitStepCompleted ${index + 1}/5 ${step}`]),
      'InitCompleted',
    ]);
  });

  test('I-32: a new session repeats neither a step of a completed plan nor the command', async () => {
    const before = await planned();
    expect(before).toHaveLength(1);
    const { id } = await sandbox('planned');
    const log = await drover.logs('planned');
    const pid = await drover.pidOf('serve');
    process.kill(pid, 'SIGKILL');
    await eventually('serve has exited', () => !isAlive(pid));
    await drover.saw(id, ['session'], (types) => types.filter((type) => type === 'SessionConnected').length === 2);
    expect(await planned()).toEqual(before);
    expect(await drover.logs('planned')).toBe(log);
    expect(await sandbox('planned')).toMatchObject({ init: { state: 'completed' }, startCount: 1 });
  });

  test('I-32: a new start runs post-init again', async () => {
    await drover.stop('planned');
    await drover.restart('planned');
    await sandboxIs('planned', 'ready', (row) => row.init.state === 'completed' && row.startCount === 2);
    const ran = await planned();
    expect(ran).toHaveLength(2);
    expect(new Set(ran).size).toBe(2);
  });

  test('I-30: a failed plan ends run with its step, exit and last lines of stderr; the command never ran', async () => {
    const script = join(drover.directory, 'fails.sh');
    await writeFile(script, '#!/bin/sh\necho "the database is not there" >&2\nexit 3\n');
    const outcome = await drover.run(['run', '--name', 'fails', '--post-init', script, 'host', '--', 'echo', 'ran']);
    expect(outcome).toMatchObject({ code: 125, stdout: '' });
    expect(outcome.stderr).toMatch(/post-init/);
    expect(outcome.stderr).toMatch(/the database is not there/);
    const row = await sandboxIs('fails', 'failed', ({ state }) => state === 'failed');
    expect(row).toMatchObject({
      reason: 'init-failed',
      init: { state: 'failed', stepName: 'post-init', reason: 'exit-code', exitCode: 3, stderr: 'the database is not there\n' },
    });
    expect(await succeeds(['sandbox', 'get', 'fails'])).toMatch(/failed at post-init, exit 3/);
    const types = (await eventsOf(row.id, 'init')).map(({ type }) => type);
    expect(types.slice(-2)).toEqual(['InitStepFailed', 'InitFailed']);
    expect(await drover.logs('fails')).toBe('');
  });

  test('I-38: the built-in steps need no program of the image', async () => {
    const root = join(drover.directory, 'root');
    await mkdir(join(root, 'bin'), { recursive: true });
    await execa('cp', ['/bin/busybox', join(root, 'bin', 'cat')]);
    const file = join(drover.directory, 'bare.yaml');
    await writeFile(file, 'files:\n  - path: /etc/made-up\n    content: "by setup\\n"\n');
    expect(await succeeds(['run', '--rm', '--setup', file, `dir:${root}`, '--', '/bin/cat', '/etc/made-up'])).toBe('by setup\n');
  });

  test('an invalid setup file is refused with one sentence, and no sandbox is created', async () => {
    const file = join(drover.directory, 'bad.yaml');
    const before = (await drover.sandboxes<SandboxJson>()).length;
    for (const text of ['files: 3\n', 'nonsense: true\n', 'files:\n  - path: x\n', 'files:\n  - path: a\n    secret: NOT_THERE\n', '{']) {
      await writeFile(file, text);
      const { code, stderr } = await drover.run(['run', '--setup', file, 'host', '--', 'true']);
      expect({ text, code, stderr }).toEqual({ text, code: 125, stderr: expect.stringMatching(/^drover: [^\n]+\n {2}hint: [^\n]+\n$/) });
    }
    expect((await drover.sandboxes<SandboxJson>()).length).toBe(before);
  });
});

describe('I-4: containment', () => {
  let target: string;

  beforeAll(async () => {
    const [file, ...args] = world.command(
      'python3',
      '-u',
      '-c',
      `import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"outside\\n")
    def log_message(self, *a): pass
s = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), H); print("listening"); s.serve_forever()`,
    );
    const server = execa(file, args, { reject: false });
    let output = '';
    server.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    await eventually('the server of the world listens', () => output.includes('listening'));
    target = `${world.hostAddress}:8080`;
    return async () => {
      server.kill('SIGKILL');
      await server;
    };
  });

  const outside = async (name: string): Promise<string> => (await drover.exec(name, ['curl', '-s', '-m', '3', `http://${target}/`])).stdout;

  test('--cut-network: the sandbox reaches no address, and the control plane reaches the sandbox; release restores its network', async () => {
    await drover.begin('cut', idle, { allow: [target] });
    expect(await outside('cut')).toBe('outside\n');
    await succeeds(['sandbox', 'contain', 'cut', '--cut-network']);
    expect(await outside('cut')).toBe('');
    expect(await drover.exec('cut', ['echo', 'reached'])).toMatchObject({ code: 0, stdout: 'reached\n' });
    expect(await sandbox('cut')).toMatchObject({ containment: { networkCut: true } });
    // The cut survives a restart of the agent and of the sandbox.
    const pid = await drover.pidOf('agent');
    process.kill(pid, 'SIGKILL');
    await eventually('the agent has reconnected', async () => (await drover.exec('cut', ['true']).catch(() => undefined))?.code === 0);
    expect(await outside('cut')).toBe('');
    await drover.stop('cut');
    await drover.restart('cut');
    await sandboxIs('cut', 'trusted', (row) => row.identity.verdict === 'trusted' && row.init.state === 'completed');
    expect(await outside('cut')).toBe('');
    await succeeds(['sandbox', 'release', 'cut', '--cut-network']);
    expect(await outside('cut')).toBe('outside\n');
  });

  test('--pause freezes a sandbox, and release resumes it', async () => {
    await drover.begin('frozen', ['sh', '-c', 'while :; do echo tick; sleep 0.1; done']);
    const lines = async (): Promise<number> => (await readLog('frozen')).length;
    await eventually('the command prints', async () => (await lines()) > 3);
    await succeeds(['sandbox', 'contain', 'frozen', '--pause']);
    expect((await sandbox('frozen')).state).toBe('paused');
    await eventually('the kernel has frozen it', async () => await isFrozen('frozen'));
    const still = await lines();
    expect(await lines()).toBe(still);
    await succeeds(['sandbox', 'release', 'frozen', '--pause']);
    await eventually('the command prints again', async () => (await lines()) > still + 3);
    expect(await sandbox('frozen')).toMatchObject({ state: 'running', startCount: 1 });
  });

  test('--kill ends a sandbox, also a paused one with an untrusted session; a release of both starts it', async () => {
    await succeeds(['identity', 'evict', 'frozen']);
    await sandboxIs('frozen', 'untrusted', (row) => row.identity.verdict === 'untrusted');
    await succeeds(['sandbox', 'contain', 'frozen', '--pause']);
    await succeeds(['sandbox', 'contain', 'frozen', '--kill']);
    expect((await sandbox('frozen')).state).toBe('stopped');
    await succeeds(['sandbox', 'release', 'frozen']);
    await sandboxIs('frozen', 'trusted', (row) => row.state === 'running' && row.identity.verdict === 'trusted');
  });

  test('--revoke takes the identity until a release', async () => {
    const { identity, id } = await drover.begin<SandboxJson>('revoked', idle);
    await succeeds(['sandbox', 'contain', 'revoked', '--revoke']);
    const row = await sandboxIs('revoked', 'revoked', (now) => now.identity.verdict === 'revoked' && now.session.state === 'connected');
    expect(row).toMatchObject({ identity: { thumbprint: '' }, containment: { revoked: true } });
    expect(await drover.exec('revoked', ['echo', 'reached'])).toMatchObject({ code: 0, stdout: 'reached\n' });
    expect((await eventsOf(id, 'identity')).map(({ type }) => type)).toContain('IdentityEvicted');
    await succeeds(['sandbox', 'release', 'revoked', '--revoke']);
    const back = await sandboxIs('revoked', 'trusted again', (now) => now.identity.verdict === 'trusted');
    // The sandbox registers again in the same start, with the same certificate.
    expect(back).toMatchObject({ startCount: 1, identity: { thumbprint: identity.thumbprint } });
  });

  test('an unresponsive sandbox is contained through its host', async () => {
    const { id } = await drover.begin<SandboxJson>('deaf', idle, { allow: [target] });
    const pid = Number((await readFile(join(drover.data, 'host', 'sandboxes', id, 'init.pid'), 'utf8')).trim());
    // SIGSTOP makes init unresponsive; the other processes keep running.
    process.kill(pid, 'SIGSTOP');
    try {
      await succeeds(['sandbox', 'contain', 'deaf', '--cut-network', '--kill', '--revoke']);
      expect(await sandbox('deaf')).toMatchObject({ state: 'stopped', containment: { networkCut: true, revoked: true } });
    } finally {
      if (isAlive(pid)) process.kill(pid, 'SIGCONT');
    }
  });

  test('contain without an action, or on an absent sandbox, fails with one clear sentence', async () => {
    const none = await drover.run(['sandbox', 'contain', 'cut']);
    expect(none.code).toBe(2);
    expect(none.stderr).toMatch(/--cut-network/);
    expect((await drover.run(['sandbox', 'contain', 'nowhere', '--kill'])).code).toBe(3);
    expect((await drover.run(['identity', 'get', 'nowhere'])).code).toBe(3);
  });

  /** Whether the kernel reports the processes as frozen: by the freezer of cgroup v1, or the events of v2. */
  async function isFrozen(name: string): Promise<boolean> {
    const { id } = await sandbox(name);
    const pid = (await readFile(join(drover.data, 'host', 'sandboxes', id, 'init.pid'), 'utf8')).trim();
    const groups = await readFile(`/proc/${pid}/cgroup`, 'utf8');
    const first = /^\d+:freezer:(\S+)$/m.exec(groups)?.[1];
    if (first !== undefined) return (await readFile(`/sys/fs/cgroup/freezer${first}/freezer.state`, 'utf8')).trim() === 'FROZEN';
    const second = /^0::(\S+)$/m.exec(groups)?.[1] ?? '';
    return (await readFile(`/sys/fs/cgroup${second}/cgroup.events`, 'utf8')).includes('frozen 1');
  }

  async function readLog(name: string): Promise<readonly string[]> {
    return (await drover.logs(name)).split('\n');
  }
});

describe('I-34 to I-36: events', () => {
  test('I-35: a watcher that continues from an id sees every event once, across a kill of the control plane', async () => {
    const { id } = await drover.begin<SandboxJson>('watched', idle);
    const all = await eventsOf(id);
    const ids = all.map((event) => event.id);
    expect(ids).toEqual(ids.toSorted((a, b) => a - b));
    const middle = all[Math.floor(all.length / 2)];
    const rest = linesOf(
      await succeeds(['events', '--since', String(middle?.id ?? ''), '--subject', id, '--kind', 'session,identity,init', '-o', 'json']),
    );
    expect(rest.map((event) => event.id)).toEqual(ids.filter((at) => at > Number(middle?.id)));

    const follower = drover.spawn([
      'events',
      '-f',
      '--since',
      String(middle?.id ?? ''),
      '--subject',
      id,
      '--kind',
      'session,identity,init',
      '-o',
      'json',
    ]);
    let output = '';
    follower.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    await eventually(
      'the follower has the past events',
      () => linesOf(output.slice(0, output.lastIndexOf('\n') + 1)).length >= rest.length,
    );
    const before = output.length;
    const pid = await drover.pidOf('serve');
    process.kill(pid, 'SIGKILL');
    await eventually('serve has exited', () => !isAlive(pid));
    await eventually(
      'the follower received the new session',
      () => output.slice(before).includes('SessionConnected'),
      60_000,
      () => output,
    );
    follower.kill('SIGINT');
    await follower;
    const seen = linesOf(output).map((event) => event.id);
    expect(new Set(seen).size).toBe(seen.length);
    expect(seen).toEqual((await eventsOf(id)).map((event) => event.id).filter((at) => at > Number(middle?.id) && at <= (seen.at(-1) ?? 0)));
  });
});
