import { chmod, mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { addLayer, busyboxRoot, largestLayer, TestDrover, tool } from '../harness/index.ts';

// images.corpus.test.ts compares the trees of images with umoci's. This file tests properties that need a sandbox.

let drover: TestDrover;
let work: string;
let layout: string;

beforeAll(async () => {
  work = await tool('mktemp', '-d', '/tmp/e2e-field-images-XXXXXX');
  await chmod(work, 0o711);
  layout = join(work, 'layout');
  await tool('umoci', 'init', '--layout', layout);
  await tool('umoci', 'new', '--image', `${layout}:empty`);
  await addLayer(layout, 'empty', 'base', async (root) => {
    await busyboxRoot(root);
    await symlink('busybox', join(root, 'bin/stat'));
    await mkdir(join(root, 'tmp'));
    await rm(join(root, 'etc'), { recursive: true });
    const config = join(root, 'usr/config');
    await mkdir(join(config, 'ssl/certs'), { recursive: true });
    await writeFile(join(config, 'passwd'), 'root:x:0:0::/:/bin/sh\napp:x:1234:1234::/:/bin/sh\n');
    await writeFile(join(config, 'group'), 'root:x:0:\napp:x:1234:\n');
    await writeFile(join(config, 'ssl/certs/ca-certificates.crt'), 'certificates of the image\n');
    await symlink('/usr/config', join(root, 'etc'));
  });
  await addLayer(layout, 'base', 'linked', async (root) => await rm(join(root, 'tmp'), { recursive: true }));
  await tool('umoci', 'config', '--image', `${layout}:linked`, '--config.user', 'app');
  drover = await TestDrover.start(['--pool', '10.235.0.0/18']);
});

afterAll(async () => {
  await drover?.[Symbol.asyncDispose]();
  await rm(work, { recursive: true, force: true });
});

describe('R-11: an image whose /etc is a link', () => {
  test('keeps its users and certificates, has its host name and resolver, and has a /tmp', async () => {
    const script = [
      'echo "$(busybox id -u):$(busybox id -g)"',
      'cat /etc/ssl/certs/ca-certificates.crt /etc/hostname',
      'echo "$(cat /etc/resolv.conf)" "$(cat /etc/hosts)"',
      'echo written > /tmp/mine; stat -c "%a" /tmp',
    ].join('\n');
    const { stdout, stderr } = await drover.run(['run', '--rm', '--name', 'linked', `oci:${layout}:linked`, '--', '/bin/sh', '-c', script]);
    expect(stderr.replaceAll(/^drover: .*\n/gm, '')).toBe('');
    expect(stdout).toMatch(/^1234:1234\ncertificates of the image\nlinked\n/);
    expect(stdout).toMatch(/name server[^]*127\.0\.0\.1\tlocalhost[^]*\tlinked\n1777\n$/);
  });
});

test('R-14: a zstd layer of zeros is accepted, like one of gzip', async () => {
  const zeros = join(work, 'zeros');
  await tool('truncate', '-s', '100M', zeros);
  await tool('umoci', 'insert', '--image', `${layout}:empty`, '--tag', 'zeros', zeros, '/zeros');
  const zstd = join(work, 'zstd');
  await tool('skopeo', 'copy', '-q', '--dest-compress-format', 'zstd', `oci:${layout}:zeros`, `oci:${zstd}:zeros`);
  expect((await largestLayer(zstd, 'zeros')).size).toBeLessThan(100_000);
  for (const image of [`oci:${layout}:zeros`, `oci:${zstd}:zeros`]) {
    const { code, stderr } = await drover.run(['image', 'pull', image]);
    expect({ image, code, stderr: code === 0 ? '' : stderr }).toEqual({ image, code: 0, stderr: '' });
  }
});

describe('R-15: the progress of a pull', () => {
  test('shows layers and bytes, and one plain line for each step in a pipe', async () => {
    const { code, stdout, stderr } = await drover.run(['image', 'pull', `oci:${layout}:linked`]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^\S+: sha256:[0-9a-f]{64}\n$/);
    const lines = stderr.trim().split('\n');
    expect(lines).toContainEqual(expect.stringMatching(/ pulling oci:\S+: 2 of 2 layers, (\S+ \S+) of \1$/));
    expect(new Set(lines).size).toBe(lines.length);
  });

  test('Docker’s names of the image commands are accepted', async () => {
    const image = `oci:${layout}:linked`;
    expect((await drover.run(['pull', image])).stdout).toMatch(/^\S+: sha256:[0-9a-f]{64}\n$/);
    expect((await drover.run(['images'])).stdout).toContain(image);
    expect((await drover.run(['rmi', image])).code).toBe(0);
    expect((await drover.run(['images'])).stdout).not.toContain(image);
  });
});
