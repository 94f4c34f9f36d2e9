import { randomBytes } from 'node:crypto';
import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { imageTools, makeLayout, RegistryProxy, requireTools, startRegistry, type RegistryPeer } from '@drover/agent/images/testing';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  addLayer,
  busyboxRoot,
  digestInRegistry,
  Docker,
  eventually,
  isAlive,
  largestLayer,
  pushImage,
  TestDrover,
  tool,
  tracesOf,
} from './harness/index.ts';

interface ImageJson {
  readonly image: { readonly reference: string; readonly digest: string; readonly holders: number };
}

/** Exactly one error and one hint on stderr. */
const oneSentence = /^drover: [^\n]+\n {2}hint: [^\n]+\n$/;
const bigBytes = 24 * 1024 * 1024;

let drover: TestDrover;
let registry: RegistryPeer;
/** The registry that Drover pulls from. It speaks plain HTTP, which a flag of the agent permits. */
let proxy: RegistryProxy;
/** A second address of the same registry, which no flag of the agent names. */
let unlisted: RegistryProxy;
let layout: string;
let work: string;

const run = async (image: string, ...command: readonly string[]) => await drover.run(['run', '--rm', '-n', image, '--', ...command]);
const images = async (): Promise<ImageJson[]> => await drover.json<ImageJson[]>(['image', 'ls']);
const reference = (tag: string): string => `${proxy.host}/demo:${tag}`;

async function succeeds(args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await drover.run(args);
  expect({ args, code, stderr: code === 0 ? '' : stderr }).toEqual({ args, code: 0, stderr: '' });
  return stdout;
}

/** Checks the image of makeLayout: it has two layers, and the upper one deletes a file of the lower one. */
async function expectDemo(image: string): Promise<void> {
  const outcome = await run(
    image,
    '/bin/busybox',
    'sh',
    '-c',
    '/bin/busybox cat /etc/motd /etc/second; /bin/busybox ls /etc; echo $A $PWD',
  );
  expect({ image, code: outcome.code, stderr: outcome.code === 0 ? '' : outcome.stderr }).toEqual({ image, code: 0, stderr: '' });
  expect(outcome.stdout).toMatch(/^first layer\nsecond layer\n/);
  expect(outcome.stdout).not.toMatch(/^gone$/m);
  expect(outcome.stdout).toMatch(/\nb \/etc\n$/);
}

beforeAll(async () => {
  requireTools(...imageTools, ['/usr/sbin/dockerd', 'docker.io']);
  work = await tool('mktemp', '-d', '/tmp/e2e-images-XXXXXX');
  await tool('chmod', '711', work);
  layout = await makeLayout(work);
  await addLayer(layout, 'busybox', 'big', async (root) => writeFile(join(root, 'big'), randomBytes(bigBytes)));
  await addLayer(layout, 'busybox', 'huge', async (root) => writeFile(join(root, 'big'), randomBytes(bigBytes)));
  registry = await startRegistry(work);
  proxy = await new RegistryProxy(registry.host).listen();
  unlisted = await new RegistryProxy(registry.host).listen();
  for (const tag of ['busybox', 'big', 'huge']) await pushImage(layout, tag, `${registry.host}/demo:${tag}`);
  drover = await TestDrover.start(['--pool', '10.218.0.0/18', '--insecure-registry', proxy.host]);
});

afterAll(async () => {
  const left = drover === undefined ? undefined : await tracesOf(drover);
  await drover?.[Symbol.asyncDispose]();
  for (const peer of [proxy, unlisted]) await peer?.[Symbol.asyncDispose]();
  await registry?.stop();
  await rm(work, { recursive: true, force: true });
  expect(await left?.()).toEqual([]);
});

describe('R-11: a registry', () => {
  test('drover run pulls REGISTRY/NAME:TAG, and uses its layers, environment and working directory', async () => {
    await expectDemo(reference('busybox'));
  });

  test('a second run sends the registry no request', async () => {
    const asked = proxy.requests.length;
    await expectDemo(reference('busybox'));
    expect(proxy.requests.length).toBe(asked);
  });

  test('pulls by digest', async () => {
    const digest = await digestInRegistry(registry.host, 'demo', 'busybox');
    await expectDemo(`${proxy.host}/demo@${digest}`);
    expect((await images()).find(({ image }) => image.reference.includes('@'))?.image.digest).toBe(digest);
  });

  test('pulls this machine’s platform of an index', async () => {
    const other = join(work, 'other');
    await tool('cp', '-a', layout, other);
    await tool('umoci', 'config', '--image', `${other}:busybox`, '--architecture', 's390x', '--config.env', 'A=wrong');
    await pushImage(other, 'busybox', `${registry.host}/demo:s390x`, '--override-arch', 's390x');
    const type = 'application/vnd.oci.image.manifest.v1+json';
    const manifests = await Promise.all(
      [
        { tag: 's390x', architecture: 's390x' },
        { tag: 'busybox', architecture: process.arch === 'x64' ? 'amd64' : process.arch },
      ].map(async ({ tag, architecture }) => {
        const digest = await digestInRegistry(registry.host, 'demo', tag);
        const answer = await fetch(`http://${registry.host}/v2/demo/manifests/${digest}`, { headers: { accept: type } });
        return { mediaType: type, digest, size: (await answer.arrayBuffer()).byteLength, platform: { os: 'linux', architecture } };
      }),
    );
    const mediaType = 'application/vnd.oci.image.index.v1+json';
    const put = await fetch(`http://${registry.host}/v2/demo/manifests/multi`, {
      method: 'PUT',
      headers: { 'content-type': mediaType },
      body: JSON.stringify({ schemaVersion: 2, mediaType, manifests }),
    });
    expect(put.status).toBe(201);
    await expectDemo(reference('multi'));
  });

  test('uses plain HTTP only by explicit flag: without it the pull is refused, and the hint names the flag', async () => {
    const image = `${unlisted.host}/demo:busybox`;
    const refused = await drover.run(['image', 'pull', image]);
    expect(refused.code).toBe(6);
    expect(refused.stderr).toMatch(/hint: .*--insecure/);
    const unrun = await run(image, '/bin/sh', '-c', 'true');
    expect(unrun.code).toBe(125);
    expect(unrun.stderr).toMatch(/hint: .*--insecure-registry/);
    expect((await images()).map(({ image: { reference: name } }) => name)).not.toContain(image);

    await succeeds(['image', 'pull', '--insecure', image]);
    await expectDemo(image);
  });
});

describe('R-15: drover image', () => {
  test('pull prints a line for each step on stderr, and the digest on stdout', async () => {
    // A reference that does not exist does not stop the others.
    const removal = await drover.run(['image', 'rm', 'nosuch', reference('busybox')]);
    expect([removal.code, removal.stdout]).toEqual([3, `${reference('busybox')}\n`]);
    const { code, stdout, stderr } = await drover.run(['image', 'pull', reference('busybox')]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^\S+: sha256:[0-9a-f]{64}\n$/);
    expect(stderr.trimEnd().split('\n').length).toBeGreaterThan(1);
    for (const line of stderr.trimEnd().split('\n')) expect(line).toMatch(/^drover: \S+: (resolving|pulling|unpacking|.* is ready)/);
  });

  test('pull -o json prints a record a line, the last with the image', async () => {
    const { code, stdout, stderr } = await drover.run(['image', 'pull', reference('busybox'), '-o', 'json']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const last = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '') as { image: { digest: string } };
    expect(last.image.digest).toBe(await digestInRegistry(registry.host, 'demo', 'busybox'));
  });

  test('rm of an image in use is refused; prune keeps it, and removes unused images', async () => {
    // A separate image: no other test's image may share its layers.
    await addLayer(layout, 'busybox', 'held', async (root) => writeFile(join(root, 'etc/held'), 'held\n'));
    await pushImage(layout, 'held', `${registry.host}/demo:held`);
    await succeeds(['run', '-d', '--name', 'holder', reference('held'), '--', '/bin/busybox', 'sleep', '1000']);
    const refused = await drover.run(['image', 'rm', reference('held')]);
    expect(refused.code).toBe(4);
    expect(refused.stderr).toMatch(oneSentence);
    expect(refused.stderr).toMatch(/1 sandbox uses the image/);

    expect(await succeeds(['image', 'prune'])).toMatch(/^removed \d+ images, freed /);
    expect((await images()).map(({ image }) => image.reference)).toEqual([reference('held')]);
    expect(await drover.run(['exec', 'holder', '--', '/bin/busybox', 'cat', '/etc/held'])).toMatchObject({ code: 0, stdout: 'held\n' });

    await succeeds(['sandbox', 'rm', '--force', 'holder']);
    await succeeds(['image', 'rm', reference('held')]);
    expect(await images()).toEqual([]);
    expect(await readdir(join(drover.data, 'host', 'images', 'layers'))).toEqual([]);
    expect(await succeeds(['run', '--rm', 'host', '--', 'true'])).toBe('');
  });
});

describe('R-13: a build has its own lifetime', () => {
  /** Holds the response after a third of the blob. Returns the function that releases it. */
  function holdBlobs(): { readonly reached: Promise<void>; readonly release: () => void } {
    const reached = Promise.withResolvers<void>();
    const until = Promise.withResolvers<void>();
    proxy.hold = { afterBytes: bigBytes / 3, until: until.promise, reached: reached.resolve };
    return {
      reached: reached.promise,
      release: () => {
        proxy.hold = undefined;
        until.resolve();
      },
    };
  }

  test('kill -9 of drover run in mid-pull, and rm of its sandbox: the next create uses the progress', async () => {
    const { digest, size } = await largestLayer(layout, 'big');
    const url = `/v2/demo/blobs/${digest}`;
    const { reached, release } = holdBlobs();
    const caller = drover.spawn(['run', '--name', 'first', reference('big'), '--', '/bin/sh', '-c', 'true']);
    await reached;
    caller.kill('SIGKILL');
    await caller;
    await succeeds(['sandbox', 'rm', '--force', 'first']);
    const second = run(reference('big'), '/bin/busybox', 'sh', '-c', '/bin/busybox wc -c < /big');
    await eventually('the second sandbox waits for the image', async () =>
      (await drover.sandboxes<{ message: string }>()).some(({ message }) => message.includes('/demo:big')),
    );
    release();
    expect(await second).toMatchObject({ code: 0, stdout: `${bigBytes}\n` });
    expect(proxy.blobRequests().filter((asked) => asked === url)).toHaveLength(1);
    expect(proxy.sent.get(url)).toBe(size);
  });

  test('kill -9 of the agent in mid-pull: the next agent resumes the pull, and the same sandbox starts', async () => {
    const { digest, size } = await largestLayer(layout, 'huge');
    const url = `/v2/demo/blobs/${digest}`;
    const partial = join(drover.data, 'host', 'images', 'partial', digest.replace(':', '-'));
    const { reached, release } = holdBlobs();
    const caller = drover.spawn(['run', '--rm', '-n', '--name', 'again', reference('huge'), '--', '/bin/busybox', 'wc', '-c', '/big']);
    await reached;
    const got = await eventually('the sent bytes are on disk', async () => {
      const sent = proxy.sent.get(url) ?? 0;
      return (await stat(partial).catch(() => undefined))?.size === sent ? sent : undefined;
    });
    expect(got).toBeGreaterThan(bigBytes / 4);
    const agent = await drover.pidOf('agent');
    process.kill(agent, 'SIGKILL');
    await eventually('the agent has exited', () => !isAlive(agent));
    release();
    const { exitCode, stdout, stderr } = await caller;
    expect({ exitCode, stdout, stderr: exitCode === 0 ? '' : stderr }).toEqual({ exitCode: 0, stdout: `${bigBytes} /big\n`, stderr: '' });
    const asked = proxy.requests.filter((request) => request.url === url);
    expect(asked.map(({ headers }) => headers.range)).toEqual([undefined, `bytes=${got}-`]);
    expect(proxy.sent.get(url)).toBeGreaterThanOrEqual(size);
  });
});

describe('R-4: images without a registry', () => {
  test.each(['oci-archive', 'docker-archive', 'oci'])('%s: made by skopeo', async (kind) => {
    const path = join(work, `skopeo-${kind}`);
    await tool('skopeo', 'copy', '-q', `oci:${layout}:busybox`, `${kind}:${path}:demo:latest`);
    await expectDemo(`${kind}:${path}`);
  });

  test('oci:, a layout made by umoci, by tag', async () => {
    await expectDemo(`oci:${layout}:busybox`);
  });

  test('docker-archive:, written by docker save', async () => {
    const root = await busyboxRoot(join(work, 'root'));
    await writeFile(join(root, 'etc/motd'), 'first layer\n');
    await writeFile(join(root, 'etc/gone'), 'hidden by the second layer\n');
    const rootTar = join(work, 'root.tar');
    await tool('tar', '-C', root, '-cf', rootTar, '.');
    const second = join(work, 'second');
    await writeFile(second, 'second layer\n');
    const archive = join(work, 'saved.tar');
    {
      await using docker = await Docker.start(join(work, 'docker'));
      const changes = ['-c', 'CMD ["/bin/sh"]', '-c', 'ENV A=b', '-c', 'WORKDIR /etc'];
      await docker.run('import', ...changes, rootTar, 'e2e/demo:1');
      await docker.run('create', '--name', 'saved', '--network', 'none', 'e2e/demo:1');
      await docker.run('cp', second, 'saved:/etc/second');
      await docker.run('commit', 'saved', 'e2e/demo:2');
      await docker.run('save', '-o', archive, 'e2e/demo:1', 'e2e/demo:2');
    }
    const outcome = await run(`docker-archive:${archive}:e2e/demo:2`, 'sh', '-c', 'cat motd second; echo $A $PWD');
    expect(outcome).toMatchObject({ code: 0, stdout: 'first layer\nsecond layer\nb /etc\n' });
    const first = await run(`docker-archive:${archive}:e2e/demo:1`, 'sh', '-c', 'cat motd; ls gone');
    expect(first).toMatchObject({ code: 0, stdout: 'first layer\ngone\n' });
    const none = await run(`docker-archive:${archive}`, 'sh');
    expect(none).toMatchObject({ code: 125, stdout: '' });
    expect(none.stderr).toMatch(/hint: /);
  });

  test('dir:, a directory of the host, stays unchanged', async () => {
    const root = await busyboxRoot(join(work, 'dir'));
    expect(await run(`dir:${root}`, 'sh', '-c', 'echo new > /etc/new && cat /etc/new')).toMatchObject({ code: 0, stdout: 'new\n' });
    expect(await readdir(join(root, 'etc'))).toEqual([]);
  });

  test('host has no homes or secrets, and stays unchanged', async () => {
    const mark = `drover-e2e-${process.pid}`;
    const planted = ['/root', '/home', '/etc', '/etc/ssh', '/etc/ssl/private', '/var/lib', '/srv', '/opt', '/tmp'].map(
      (path) => `${path}/${mark}`,
    );
    const made = await Promise.all(
      ['/etc/ssh', '/etc/ssl/private'].map(async (path) => await mkdir(path, { recursive: true, mode: 0o700 })),
    );
    try {
      for (const path of planted) await writeFile(path, '-----BEGIN PRIVATE KEY-----\n', { mode: 0o600 });
      const find = `find / -name ${mark} -not -path '/proc/*' 2>/dev/null; ls -A /root /home /etc/ssh 2>/dev/null; cat /etc/shadow 2>/dev/null`;
      const { stdout } = await run('host', 'sh', '-c', `${find}; touch /usr/bin/${mark} && ls /usr/bin/${mark}; id -u`);
      for (const path of planted) expect(stdout).not.toContain(path);
      expect(stdout).not.toMatch(/PRIVATE|\$y\$|\$6\$|id_rsa|id_ed25519|ssh_host|authorized_keys|\.bash_history/);
      expect(stdout).toMatch(new RegExp(`/usr/bin/${mark}\n0\n$`));
      await expect(stat(`/usr/bin/${mark}`)).rejects.toMatchObject({ code: 'ENOENT' });
      const password = /^root:([^:]+):/m.exec(await readFile('/etc/shadow', 'utf8').catch(() => ''))?.[1] ?? '';
      if (password.length > 3) expect(stdout).not.toContain(password);
    } finally {
      for (const path of planted) await rm(path, { force: true });
      for (const path of made) if (path !== undefined) await execa('rmdir', [path], { reject: false });
    }
  });
});
