import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { join } from 'node:path';
import { execa } from 'execa';
import { imageTools, makeLayout, RegistryProxy, requireTools, startRegistry, type RegistryPeer } from '@drover/agent/images/testing';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, isAlive, largestLayer, pushImage, repository, TestDrover, tool, tracesOf, type Finished } from './harness/index.ts';

/** Exactly one error and one hint on stderr, after any progress lines of a wait. */
const oneSentence =
  /^(?:drover: (?:preparing|pending|scheduled|init|waiting for the control plane): [^\n]+\n)*drover: [^\n]+\n {2}hint: [^\n]+\n$/;

let drover: TestDrover;
let work: string;
let layout: string;
let registry: RegistryPeer;
let proxy: RegistryProxy;
let taken: Server;
let takenPort: number;

/** Waits until every sandbox is deleted: a failed command requests the deletion of its sandbox without waiting for it. */
async function noSandboxIsLeft(): Promise<void> {
  await eventually('every sandbox is deleted', async () => (await drover.sandboxes()).length === 0);
}

async function nothingIsLeft(): Promise<void> {
  await noSandboxIsLeft();
  const images = join(drover.data, 'host', 'images');
  for (const name of ['staging', 'scratch', 'partial', 'blobs'])
    expect({ name, files: await readdir(join(images, name)) }).toEqual({ name, files: [] });
  expect((await readdir(join(images, 'layers'))).filter((name) => !name.startsWith('host-'))).toEqual([]);
}

function refused(outcome: Finished, code: number, sentence: RegExp): void {
  expect(outcome.stderr).toMatch(oneSentence);
  expect(outcome.stderr).toMatch(sentence);
  expect(outcome).toMatchObject({ code, stdout: '' });
}

/** Runs a command with the programs hidden from it, as on a machine without them. */
async function without(programs: readonly string[], argv: readonly string[], env: Record<string, string> = {}): Promise<Finished> {
  const script: string[] = [];
  for (const [n, directory] of ['/usr/sbin', '/usr/bin', '/usr/local/bin', '/usr/local/sbin'].entries()) {
    const hidden = programs.filter((program) => existsSync(join(directory, program)));
    if (hidden.length === 0) continue;
    const whiteouts = join(await mkdtemp(join(work, 'hidden-')), String(n));
    await mkdir(whiteouts);
    for (const program of hidden) await tool('mknod', join(whiteouts, program), 'c', '0', '0');
    script.push(`mount -t overlay overlay -o lowerdir=${whiteouts}:${directory} ${directory}`);
  }
  const result = await execa('unshare', ['-m', 'sh', '-ec', `${script.join('; ')}; exec "$@"`, 'sh', ...argv], {
    reject: false,
    stdin: 'ignore',
    stripFinalNewline: false,
    env: { ...drover.environment, ...env },
    timeout: 60_000,
  });
  return { code: result.exitCode ?? -1, stdout: result.stdout, stderr: result.stderr };
}

beforeAll(async () => {
  requireTools(...imageTools);
  work = await tool('mktemp', '-d', '/tmp/e2e-bad-XXXXXX');
  await chmod(work, 0o755);
  layout = await makeLayout(work);
  registry = await startRegistry(work);
  proxy = await new RegistryProxy(registry.host).listen();
  await pushImage(layout, 'busybox', `${registry.host}/demo:1`);
  taken = createServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  takenPort = (taken.address() as AddressInfo).port;
  drover = await TestDrover.start(['--pool', '10.218.128.0/18', '--insecure-registry', proxy.host]);
});

afterAll(async () => {
  taken?.close();
  // A failed test may have left it stopped.
  if (drover !== undefined && !isAlive(drover.upPid)) await drover.up();
  const left = drover === undefined ? undefined : await tracesOf(drover);
  await drover?.[Symbol.asyncDispose]();
  await proxy?.[Symbol.asyncDispose]();
  await registry?.stop();
  await rm(work, { recursive: true, force: true });
  expect(await left?.()).toEqual([]);
});

/** A command line, its exit code, a pattern of the sentence, and the code of the error object. */
type Row = readonly [line: string, code: number, sentence: RegExp, error: string];

const rows: readonly Row[] = [
  // Flags and commands.
  ['run --memoy 1g host -- true', 125, /unknown option '--memoy'\n.*Did you mean --memory\?/, 'invalid-argument'],
  ['sandbox lss', 2, /unknown command 'lss'\n.*Did you mean ls\?/, 'invalid-argument'],
  ['rnu host', 2, /unknown command 'rnu'\n.*Did you mean run\?/, 'invalid-argument'],
  ['image pull', 2, /missing required argument 'image'/, 'invalid-argument'],
  // Names and references.
  [`run --name ${'a'.repeat(300)} host -- true`, 125, /has 300 characters/, 'invalid-name'],
  ['run --name Bad_Name host -- true', 125, /cannot be a name\n.*lower-case/, 'invalid-name'],
  ['run UPPER/Case:x -- true', 125, /is not an image/, 'invalid-image-reference'],
  ['image pull foo@sha256:12', 2, /is not an image/, 'invalid-image-reference'],
  ['run oci-archive:/nonexistent.tar -- true', 125, /no archive at \/nonexistent\.tar/, 'image-not-found'],
  ['run dir:/nonexistent -- true', 125, /no directory \/nonexistent/, 'image-not-found'],
  ['run dir:/ -- true', 125, /whole host.*\n.*use the image host/, 'invalid-image-reference'],
  // Resources.
  ['run --memory 10t host -- true', 125, /larger than every host .*10\.0 TiB/, 'unschedulable'],
  ['run --cpus 1000 host -- true', 125, /larger than every host .*1000/, 'unschedulable'],
  ['run --memory 1x host -- true', 125, /"1x" is not a size\n.*512m/, 'invalid-argument'],
  ['run --cpus zero host -- true', 125, /"zero" is not a number of CPUs/, 'invalid-argument'],
  ['run --pids 0 host -- true', 125, /--pids "0" is not a number/, 'invalid-argument'],
  ['run --ttl never host -- true', 125, /"never" is not a duration/, 'invalid-argument'],
  // Other options of run.
  ['run --env 1A=b host -- true', 125, /"1A" cannot be the name of an environment variable/, 'invalid-argument'],
  ['run --env-file /nonexistent host -- true', 125, /environment file \/nonexistent cannot be read/, 'invalid-argument'],
  ['run --volume foo host -- true', 125, /"foo" is not a volume\n.*SOURCE:TARGET/, 'invalid-argument'],
  ['run --volume /root:/x host -- true', 125, /may not be mounted.*\n.*--allow-mount/, 'permission-denied'],
  ['run --label =x host -- true', 125, /is not a label/, 'invalid-argument'],
  ['run --allow http://foo/ host -- true', 125, /"http:\/\/foo\/" cannot be allowed.*\n.*10\.0\.0\.0\/8/, 'invalid-argument'],
  ['run --host nohost host -- true', 125, /no host "nohost"\n.*drover host ls/, 'host-not-found'],
  ['run --runtime foo host -- true', 125, /no runtime "foo"/, 'invalid-argument'],
  ['run host -- /no/such/command', 127, /command not found/, 'command-not-found'],
  ['run host -- /etc/passwd', 126, /cannot be executed/, 'command-not-executable'],
  // Absent or stopped objects.
  ['exec nosuch -- true', 125, /no sandbox "nosuch"\n.*drover sandbox ls/, 'sandbox-not-found'],
  ['sandbox get nosuch', 3, /no sandbox "nosuch"/, 'sandbox-not-found'],
  ['cp nosuch:/x /tmp/x', 3, /no sandbox "nosuch"/, 'sandbox-not-found'],
  ['host get nosuch', 3, /no host "nosuch"/, 'host-not-found'],
  ['image rm nosuch', 3, /no image nosuch/, 'image-not-found'],
  ['exec idle -- true', 125, /idle is stopped: stopped by admin\n.*drover sandbox start/, 'sandbox-not-running'],
  ['run --name idle host -- true', 125, /named idle already/, 'name-taken'],
  // Wrong credentials and addresses.
  ['sandbox ls --token wrong', 5, /not an API token/, 'unauthenticated'],
  [
    'sandbox ls --server https://127.0.0.1:1 --token x --ca /etc/ssl/certs/ca-certificates.crt',
    6,
    /cannot reach the control plane/,
    'control-plane-unreachable',
  ],
  ['agent join https://127.0.0.1:1 --token drv1.x --state /nonexistent/state', 2, /not a join token/, 'invalid-argument'],
  [
    'up --data /etc/passwd/x --listen 127.0.0.1:0',
    2,
    /data directory \/etc\/passwd\/x cannot be used: a part of the path is not a directory/,
    'invalid-argument',
  ],
  ['up --listen nonsense', 2, /not an address to listen on/, 'invalid-argument'],
  ['up --listen 127.0.0.1:0 --pool 10.0.0.0/99', 2, /no address pool/, 'invalid-config'],
  ['up --listen 127.0.0.1:0 --cpus none', 2, /not a number of CPUs/, 'invalid-argument'],
  ['up --listen 127.0.0.1:0 --insecure-registry http://x/', 2, /not the host of a registry/, 'invalid-argument'],
];

describe('bad input: one sentence, the next step, an exit code', () => {
  beforeAll(async () => {
    await drover.begin('idle', ['sleep', '1000']);
    await drover.stop('idle', 1);
  });

  test.each(rows)('drover %s → %i', async (line, code, sentence) => {
    const [command = '', ...rest] = line.split(' ');
    refused(await drover.run([command, ...rest]), code, sentence);
  });

  // All errors are printed by the same code, so one row for each error code suffices.
  const oneOfEach = rows.filter(([, , , error], index) => rows.findIndex((row) => row[3] === error) === index);

  test.each(oneOfEach)('drover %s → %i, as JSON', async (line, code, _, error) => {
    const [command = '', ...rest] = line.split(' ');
    const json = await drover.run(['-o', 'json', command, ...rest]);
    expect(json.code).toBe(code);
    expect(JSON.parse(json.stderr.trimEnd().split('\n').at(-1) ?? '')).toMatchObject({
      error: { code: error, message: expect.any(String) as string, hint: expect.any(String) as string },
    });
  });

  test('no partial sandbox, image or download is left', async () => {
    await drover.remove('idle');
    await nothingIsLeft();
  });

  test('R-16: the control plane and the gateway accept every form of --allow', async () => {
    const forms = ['example.com', '*.Example.com:8443', '10.1.2.3', '10.0.0.0/8:443', '2001:db8::1', 'fd00::/8', '[fd00::/8]:443'];
    const allow = forms.flatMap((form) => ['--allow', form]);
    expect(await drover.run(['run', '--rm', '-n', ...allow, 'host', '--', 'echo', 'in'])).toMatchObject({ code: 0, stdout: 'in\n' });
  });

  test('no control plane is known', async () => {
    const outcome = await drover.run(['sandbox', 'ls'], { env: { XDG_CONFIG_HOME: join(work, 'none') } });
    refused(outcome, 4, /no control plane is known\n.*drover up/);
  });
});

describe('registries', () => {
  test('a port without a listener', async () => {
    const outcome = await drover.run(['run', '-n', '127.0.0.1:1/x/y:1', '--', 'true']);
    refused(outcome, 125, /the registry 127\.0\.0\.1:1 cannot be reached: connection refused/);
    refusedPull(await drover.run(['image', 'pull', '127.0.0.1:1/x/y:1']), 6, /cannot be reached/);
    await nothingIsLeft();
  });

  test('R-13: a registry that accepts connections and never responds: one sentence, after a bounded number of tries', async () => {
    let connections = 0;
    const silent = createServer((socket) => {
      connections++;
      socket.resume().on('error', () => socket.destroy());
    }).listen(0, '127.0.0.1');
    await once(silent, 'listening');
    const { port } = silent.address() as AddressInfo;
    try {
      const outcome = await drover.run(['run', '-n', `127.0.0.1:${port}/x/y:1`, '--', 'true'], { timeoutMs: 150_000 });
      refused(outcome, 125, new RegExp(`the registry 127\\.0\\.0\\.1:${port} cannot be reached: .*(?:timeout|timed out)`, 'i'));
      // The host's tries alone: the control plane does not repeat them.
      expect(connections).toBe(5);
      await nothingIsLeft();
    } finally {
      await new Promise((resolve) => silent.close(resolve));
    }
  }, 180_000);

  test('an absent image', async () => {
    refusedPull(await drover.run(['image', 'pull', `${proxy.host}/demo:none`]), 3, /has no demo none/);
    await nothingIsLeft();
  });

  test('a layer that was damaged in transit', async () => {
    const { digest } = await largestLayer(layout, 'busybox');
    const whole = Buffer.from(await (await fetch(`http://${registry.host}/v2/demo/blobs/${digest}`)).arrayBuffer());
    whole[whole.length >> 1] = (whole[whole.length >> 1] ?? 0) ^ 1;
    proxy.intercept = (request, response) => {
      if (request.url?.includes(digest) !== true) return false;
      response.writeHead(200, { 'content-length': String(whole.length) }).end(whole);
      return true;
    };
    try {
      refusedPull(await drover.run(['image', 'pull', `${proxy.host}/demo:1`]), 1, /has the digest sha256/);
      refused(await drover.run(['run', '-n', `${proxy.host}/demo:1`, '--', 'true']), 125, /has the digest sha256/);
    } finally {
      proxy.intercept = () => false;
    }
    await noSandboxIsLeft();
    expect((await drover.run(['run', '--rm', '-n', `${proxy.host}/demo:1`, '--', '/bin/busybox', 'true'])).code).toBe(0);
    await drover.run(['image', 'rm', `${proxy.host}/demo:1`]);
    await nothingIsLeft();
  });
});

/** Expects a line for each step of the pull before the sentence. */
function refusedPull({ code, stdout, stderr }: Finished, exit: number, sentence: RegExp): void {
  expect(stderr).toMatch(/\ndrover: [^\n]+\n {2}hint: [^\n]+\n$/);
  expect(stderr).toMatch(sentence);
  expect({ code, stdout }).toEqual({ code: exit, stdout: '' });
}

describe('a full disk', () => {
  test('up reports that images do not fit, and leaves no partial image', async () => {
    const disk = join(work, 'disk');
    const image = join(work, 'disk.img');
    await tool('truncate', '-s', '40M', image);
    await tool('mkfs.ext4', '-q', '-m', '0', image);
    await mkdir(disk);
    await tool('mount', '-o', 'loop', image, disk);
    try {
      // Only the image store is full, so the failure is the host's.
      const state = join(drover.data, 'host', 'images');
      await drover.interrupt();
      await tool('cp', '-a', `${state}/.`, disk);
      await tool('mount', '--bind', disk, state);
      try {
        await drover.up();
        await tool('sh', '-c', `dd if=/dev/zero of=${disk}/filler bs=64k 2>/dev/null || true`);
        refusedPull(await drover.run(['image', 'pull', `${proxy.host}/demo:1`]), 7, /does not fit: the host's disk that holds \S+ is full/);
        refused(
          await drover.run(['run', '-n', `${proxy.host}/demo:1`, '--', 'true']),
          125,
          /does not fit: the host's disk that holds \S+ is full/,
        );
        await rm(join(disk, 'filler'));
        // A complete layer counts as progress (R-13) and stays until a prune.
        await drover.run(['image', 'prune']);
        await nothingIsLeft();
        expect((await drover.run(['run', '--rm', '-n', `${proxy.host}/demo:1`, '--', '/bin/busybox', 'true'])).code).toBe(0);
      } finally {
        await drover.interrupt();
        await tool('umount', state);
      }
      await drover.up();
    } finally {
      await execa('umount', [disk], { reject: false });
    }
  });
});

describe("a full disk under the control plane's store", () => {
  test('the store reports it, loses no acknowledged write, and continues when space is free', async () => {
    const disk = join(work, 'store');
    const image = join(work, 'store.img');
    const data = join(drover.data, 'control-plane');
    await tool('truncate', '-s', '24M', image);
    await tool('mkfs.ext4', '-q', '-m', '0', image);
    await mkdir(disk);
    await tool('mount', '-o', 'loop', image, disk);
    try {
      await drover.interrupt();
      await tool('cp', '-a', `${data}/.`, disk);
      await tool('mount', '--bind', disk, data);
      try {
        await drover.up();
        await drover.begin('before', ['sleep', '600']);
        await tool('sh', '-c', `dd if=/dev/zero of=${disk}/filler bs=4k 2>/dev/null || true`);
        // The first writes may still find room in allocated pages of the log.
        const made: string[] = [];
        const outcome = await eventually(
          'the store finds no room',
          async () => {
            const name = `full-${made.length}`;
            const create = await drover.run(['sandbox', 'create', '--no-wait', '--name', name, 'host', '--', 'sleep', '600']);
            if (create.code !== 0) return create;
            made.push(name);
            return undefined;
          },
          90_000,
        );
        refused(outcome, 7, /the disk that the control plane keeps its data on is full\n {2}hint: make room/);
        // Reads and running sandboxes still work.
        const names = async (): Promise<string[]> => (await drover.sandboxes<{ name: string }>()).map(({ name }) => name);
        expect((await names()).toSorted()).toEqual(['before', ...made].toSorted());
        expect(await drover.exec('before', ['echo', 'reached'])).toMatchObject({ code: 0, stdout: 'reached\n' });

        await rm(join(disk, 'filler'));
        await drover.begin('after', ['sleep', '600']);
        for (const name of made) await eventually(`${name} runs`, async () => (await drover.sandbox(name))['state'] === 'running', 90_000);
        expect(await drover.sandbox('before')).toMatchObject({ state: 'running', startCount: 1 });
        await drover.remove('before', 'after', ...made);
        await nothingIsLeft();
      } finally {
        await drover.interrupt();
        // Copy the present data back, because it includes certificates issued in the meantime.
        await tool('sh', '-c', `rm -f ${disk}/filler; umount ${data} && cp -a ${disk}/. ${data}/`);
      }
      await drover.up();
    } finally {
      await execa('umount', [disk], { reject: false });
    }
  }, 300_000);
});

describe('a gateway whose address is taken', () => {
  test('L-22: sandboxes and doctor report the holder of the address in time; when the address is free they start', async () => {
    expect((await drover.run(['run', '--rm', '-n', 'host', '--', 'true'])).code).toBe(0);
    const gateway = await drover.pidOf('gateway');
    process.kill(gateway, 'SIGKILL');
    await eventually('the gateway has exited', () => !isAlive(gateway));
    // Take the address before the agent starts the next gateway.
    const holder = createServer();
    await eventually('its daemons have exited too', async () => {
      try {
        await once(holder.listen(3128, '10.218.128.1'), 'listening');
        return true;
      } catch {
        return false;
      }
    });
    try {
      const began = Date.now();
      for (const verb of [
        ['run', '-d'],
        ['run', '-n'],
      ]) {
        refused(
          await drover.run([...verb, 'host', '--', 'true']),
          125,
          /10\.218\.128\.1:3128.* is held by another process\n {2}hint: .*ss -Hltnp/,
        );
      }
      expect(Date.now() - began).toBeLessThan(60_000);
      const { code, stdout } = await drover.run(['doctor', '--data', drover.data]);
      expect(stdout).toMatch(/^problem {2}gateway: 10\.218\.128\.1:3128.* is held by another process/m);
      expect(code).toBe(1);
    } finally {
      await new Promise((resolve) => holder.close(resolve));
    }
    expect((await drover.run(['run', '--rm', '-n', 'host', '--', 'true'])).code).toBe(0);
    expect((await drover.run(['doctor', '--data', drover.data])).stdout).toMatch(/^ok {7}gateway: it runs at 10\.218\.128\.1:3128$/m);
    await nothingIsLeft();
  });
});

describe('up', () => {
  test('on a taken port', async () => {
    const data = join(work, 'port');
    refused(await drover.run(['up', '--data', data, '--listen', `127.0.0.1:${takenPort}`]), 6, /in use by another program\n.*--listen/);
  });

  test('as a user without write access', async () => {
    const args = ['--reuid', '65534', '--regid', '65534', '--clear-groups', 'env', 'HOME=/nonexistent'];
    const { exitCode, stdout, stderr } = await execa('setpriv', [...args, join(repository, 'drover'), 'up', '--listen', '127.0.0.1:0'], {
      reject: false,
      stdin: 'ignore',
      stripFinalNewline: false,
      timeout: 60_000,
      env: { NO_COLOR: '1' },
    });
    expect(stdout).toBe('');
    expect(stderr.trimEnd().split('\n').at(-1)).toMatch(/^ {2}hint: .+/);
    expect(stderr).toMatch(/^drover: .*(?:root|cannot be used|permit)/m);
    expect([2, 5]).toContain(exitCode);
  });

  test("a failed up leaves its caller's contexts unchanged", async () => {
    const context = join(drover.directory, 'config', 'drover');
    const of = async (): Promise<string[]> => {
      const files = (await readdir(context, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
      const paths = files.map(({ parentPath, name }) => join(parentPath, name)).toSorted();
      return await Promise.all(paths.map(async (path) => `${path}: ${await readFile(path, 'utf8')}`));
    };
    const known = await of();
    await drover.run(['up', '--data', join(work, 'failed'), '--listen', '127.0.0.1:0', '--runtime-program', '/bin/false']);
    expect(await of()).toEqual(known);
    expect((await drover.run(['sandbox', 'ls'])).code).toBe(0);
  });
});

describe('doctor finds the usual causes first', () => {
  const doctor = (...args: readonly string[]): string[] => [join(repository, 'drover'), 'doctor', '--data', join(work, 'doctor'), ...args];

  test('ends with 0 on a healthy machine', async () => {
    const { code, stdout } = await drover.run(['doctor', '--data', drover.data]);
    expect(stdout).not.toMatch(/^problem/m);
    expect(code).toBe(0);
    expect(await drover.json(['doctor', '--data', drover.data])).toContainEqual(
      expect.objectContaining({ name: 'privileges', level: 'ok' }),
    );
  });

  test('without flags checks the settings of the running up', async () => {
    const { stdout } = await drover.run(['doctor']);
    expect(stdout).toContain(` free at ${drover.data}\n`);
    expect(stdout).toMatch(/^ok {7}port: drover responds on /m);
  });

  test('no runc and no crun', async () => {
    const { code, stdout } = await without(['runc', 'crun'], doctor());
    expect(stdout).toMatch(/^problem {2}container runtime: neither runc nor crun is installed\n +hint: apt-get install runc$/m);
    expect(code).toBe(1);
  });

  test('no nft, no ip', async () => {
    const { code, stdout } = await without(['nft', 'ip'], doctor());
    expect(stdout).toMatch(/^problem {2}nftables: nft is not installed\n +hint: apt-get install nftables$/m);
    expect(stdout).toMatch(/^problem {2}ip command: ip is not installed\n +hint: apt-get install iproute2$/m);
    expect(code).toBe(1);
  });

  test('a taken port', async () => {
    const env = { XDG_CONFIG_HOME: join(work, 'none') };
    const { code, stdout } = await drover.run(['doctor', '--listen', `127.0.0.1:${takenPort}`], { env });
    expect(stdout).toMatch(new RegExp(`^problem  port: 127\\.0\\.0\\.1:${takenPort} is in use`, 'm'));
    expect(code).toBe(1);
    // Drover responds on another port, but a different program holds this one.
    expect((await drover.run(['doctor', '--listen', `127.0.0.1:${takenPort}`])).stdout).toMatch(/^problem {2}port:/m);
  });

  test('a nearly full disk', async () => {
    const small = join(work, 'small');
    await mkdir(small);
    await tool('mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', small);
    try {
      const { stdout } = await drover.run(['doctor', '--data', small]);
      expect(stdout).toMatch(/^warning {2}disk: 4\.0 MiB free/m);
    } finally {
      await tool('umount', small);
    }
  });

  test('not root', async () => {
    const { exitCode, stdout } = await execa(
      'setpriv',
      ['--reuid', '65534', '--clear-groups', '--regid', '65534', 'env', 'HOME=/nonexistent', ...doctor()],
      {
        reject: false,
        stdin: 'ignore',
      },
    );
    expect(stdout).toMatch(/^problem {2}privileges: not root\n +hint: .*sudo/m);
    expect(exitCode).toBe(1);
  });

  test('no cgroups', async () => {
    const { exitCode, stdout } = await execa(
      'unshare',
      ['-m', 'sh', '-ec', 'umount -R /sys/fs/cgroup || umount -Rl /sys/fs/cgroup; exec "$@"', 'sh', ...doctor()],
      { reject: false, stdin: 'ignore', env: drover.environment },
    );
    expect(stdout).toMatch(/^problem {2}cgroups: no cgroup file system is mounted\n +hint: mount -t cgroup2/m);
    expect(exitCode).toBe(1);
  });
});
