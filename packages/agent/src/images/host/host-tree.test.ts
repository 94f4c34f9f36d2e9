import { execFileSync } from 'node:child_process';
import { existsSync, lstatSync, readFileSync } from 'node:fs';
import { chmod, mkdir, readdir, readlink, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { silentLogger } from '@drover/foundation/log';
import { buildHostTree, hostSignature } from './host-tree.ts';
import { ImageStore } from '../store.ts';
import { command, temporaryDirectory } from '../testing/peers.ts';

let directory: string;
beforeAll(async () => {
  directory = await temporaryDirectory();
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

async function makeHost(files: Record<string, string>): Promise<string> {
  const root = join(directory, `host-${(await readdir(directory)).length}`);
  for (const path of ['usr/bin', 'usr/lib', 'etc', 'home/ann', 'root', 'lib64', 'var/lib/dpkg'])
    await mkdir(join(root, path), { recursive: true });
  await symlink('usr/bin', join(root, 'bin'));
  for (const [path, content] of Object.entries(files)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), content);
    await chmod(join(root, path), 0o644);
  }
  return root;
}

async function build(root: string): Promise<{ target: string; tree: Awaited<ReturnType<typeof buildHostTree>> }> {
  const target = `${root}-tree`;
  await mkdir(target);
  return { target, tree: await buildHostTree(target, root) };
}

test('R-4: the host’s tree has no secret of the host', async () => {
  const key = '-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n';
  const root = await makeHost({
    'etc/passwd': 'root:SECRET:0:0:root:/root:/bin/bash\nann:x:1000:1000:SECRET:/home/ann:/bin/sh\nwww:x:33:33::/home/www:/bin/false\n',
    'etc/group': 'root:x:0:\nann:x:1000:\ndisk:SECRET:6:ann,www\n',
    'etc/shadow': 'root:SECRET:1::::::\n',
    'etc/gshadow': 'root:SECRET::\n',
    'etc/sudoers': 'SECRET',
    'etc/machine-id': 'SECRET',
    'etc/environment': 'http_proxy=http://SECRET',
    'etc/ssh/ssh_host_rsa_key': key,
    'etc/ssl/private/server.key': key,
    'etc/ssl/certs/server.pem': key,
    'etc/ssl/certs/ca.pem': 'a certificate',
    'etc/profile': 'export PATH=/usr/bin\n# token=sample\n',
    'etc/profile.d/proxy.sh': 'export HTTPS_PROXY=http://10.0.0.1:3128/SECRET\n',
    'etc/profile.d/cloud.sh': 'export AWS_SECRET_ACCESS_KEY=SECRET\n',
    'etc/profile.d/fine.sh': 'export LESS=-R\n',
    'etc/apt/sources.list': 'deb https://user:SECRET@example.org/debian stable main\n',
    'etc/apt/auth.conf': 'machine example.org password SECRET',
    'etc/npmrc': '_authToken=SECRET',
    'etc/nsswitch.conf': 'hosts: files dns\n',
    'home/ann/.ssh/id_ed25519': key,
    'root/.netrc': 'SECRET',
  });
  await writeFile(join(root, 'etc/ssl/certs/closed.pem'), 'SECRET', { mode: 0o600 });
  const { target } = await build(root);
  expect(() => execFileSync('grep', ['-r', 'SECRET', target])).toThrow(expect.objectContaining({ status: 1 }));
  expect(readFileSync(join(target, 'etc/passwd'), 'utf8')).toBe('root:*:0:0:root:/root:/bin/bash\nwww:*:33:33::/:/bin/false\n');
  expect(readFileSync(join(target, 'etc/group'), 'utf8')).toBe('root:*:0:\ndisk:*:6:www\n');
  for (const present of ['profile', 'profile.d/fine.sh', 'ssl/certs/ca.pem', 'nsswitch.conf'])
    expect(existsSync(join(target, 'etc', present)), present).toBe(true);
  for (const absent of ['shadow', 'machine-id', 'ssh', 'sudoers', 'environment', 'npmrc'])
    expect(existsSync(join(target, 'etc', absent)), absent).toBe(false);
  expect(await readdir(join(target, 'home'))).toEqual([]);
  expect(await readdir(join(target, 'root'))).toEqual([]);
});

test('R-4: links of a merged /usr stay links; real directories become submounts', async () => {
  const root = await makeHost({ 'etc/passwd': '' });
  const { target, tree } = await build(root);
  expect(await readlink(join(target, 'bin'))).toBe('usr/bin');
  expect(tree.submounts).toEqual([
    { lower: join(root, 'usr'), target: '/usr' },
    { lower: join(root, 'lib64'), target: '/lib64' },
    { lower: join(root, 'var/lib/dpkg'), target: '/var/lib/dpkg' },
  ]);
  for (const { target: at } of tree.submounts) expect(lstatSync(join(target, at)).isDirectory()).toBe(true);
  expect(lstatSync(join(target, 'tmp')).mode & 0o7777).toBe(0o1777);
});

test('R-4: the same host, the same digest; a changed one, another', async () => {
  const root = await makeHost({ 'etc/hosts': 'x', 'etc/shells': '/bin/sh\n' });
  const first = await build(root);
  const signature = hostSignature(root);
  await rm(first.target, { recursive: true });
  expect((await build(root)).tree.digest).toBe(first.tree.digest);
  expect(hostSignature(root)).toBe(signature);
  await rm(first.target, { recursive: true });
  await writeFile(join(root, 'etc/shells'), '/bin/sh\n/bin/other\n');
  expect(hostSignature(root)).not.toBe(signature);
  expect((await build(root)).tree.digest).not.toBe(first.tree.digest);
});

test('R-4: in this host’s own image its programs run, and what is written stays in the sandbox’s layer', async () => {
  const lifetime = new AbortController();
  const store = new ImageStore({ directory: join(directory, 'store'), logger: silentLogger, signal: lifetime.signal });
  await store.start();
  onTestFinished(async () => {
    lifetime.abort();
    await store.stopped();
  });
  const image = await store.ensure('host', { signal: lifetime.signal });
  const again = await store.ensure('host', { signal: lifetime.signal });
  expect(again).toEqual(image);
  const work = join(directory, 'run');
  const root = join(work, 'root');
  await mkdir(root, { recursive: true });
  // overlayfs wants its upper directory elsewhere than on an overlay: a tmpfs is always good.
  await command('mount', '-t', 'tmpfs', 'tmpfs', work);
  const mounted: string[] = [work];
  try {
    const overlay = async (lower: string, target: string, name: string): Promise<void> => {
      for (const part of ['upper', 'work']) await mkdir(join(work, `${name}-${part}`), { recursive: true });
      await mkdir(target, { recursive: true });
      const options = `lowerdir=${lower},upperdir=${join(work, `${name}-upper`)},workdir=${join(work, `${name}-work`)}`;
      await command('mount', '-t', 'overlay', 'overlay', '-o', options, target);
      mounted.push(target);
    };
    await overlay([...image.layers].reverse().join(':'), root, 'root');
    for (const [i, { lower, target }] of image.submounts.entries()) await overlay(lower, join(root, target), `sub${i}`);
    const output = await command(
      'chroot',
      root,
      '/bin/sh',
      '-c',
      'echo mine > /usr/drover-test && cat /usr/drover-test && id -un && ls /home /root',
    );
    expect(output).toBe('mine\nroot\n/home:\n\n/root:\n');
    expect(existsSync('/usr/drover-test')).toBe(false);
  } finally {
    for (const target of mounted.reverse()) await command('umount', target);
  }
});
