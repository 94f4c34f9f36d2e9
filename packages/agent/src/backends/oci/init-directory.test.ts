import { execFile } from 'node:child_process';
import { copyFile, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ptyAddonPath } from '@drover/init';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { prepareInitDirectory } from './init-directory.ts';
import { loaderName } from './spec.ts';

const run = promisify(execFile);
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-init-directory-'));
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

async function bundle(text: string): Promise<string> {
  const path = join(directory, 'bundle.cjs');
  await writeFile(path, text);
  return path;
}

test('I-38: node runs from it with an empty root around it, terminals included', async () => {
  const bundlePath = await bundle('require("/pty.node"); console.log("alive", process.version)');
  const path = await prepareInitDirectory(directory, { nodePath: process.execPath, bundlePath, addonPath: ptyAddonPath() });
  expect((await readdir(path)).sort()).toEqual(['init.cjs', loaderName(process.arch), 'lib', 'node', 'pty.node', 'run'].sort());
  const { stdout } = await run('chroot', [path, `/${loaderName(process.arch)}`, '--library-path', '/lib', '/node', '/init.cjs']);
  expect(stdout).toBe(`alive ${process.version}\n`);
});

test('I-6: the loader takes no library from the preload list or the cache of the root around it', async () => {
  const bundlePath = await bundle('console.log(process.report.getReport().sharedObjects.join())');
  const path = await prepareInitDirectory(directory, { nodePath: process.execPath, bundlePath });
  const root = join(directory, 'hostile-root');
  await run('cp', ['-al', path, root]);
  await mkdir(join(root, 'etc'));
  await copyFile(join(root, 'lib/libatomic.so.1'), join(root, 'hostile.so'));
  await writeFile(join(root, 'etc/ld.so.preload'), '/hostile.so\n');
  await writeFile(join(root, 'etc/ld.so.cache'), 'damaged');
  const command = [`/${loaderName(process.arch)}`, '--inhibit-cache', '--library-path', '/lib', '/node', '/init.cjs'];
  const { stdout } = await run('chroot', [root, ...command]);
  expect(stdout).toContain('/lib/libc.so.6');
  expect(stdout).not.toContain('hostile');
});

test('I-38: every user of a sandbox can run it, whatever the umask of the agent is; the run directory stays closed', async () => {
  const bundlePath = await bundle(
    'require("/pty.node"); console.log(process.getuid(), require("fs").readFileSync("/init.cjs").length > 0)',
  );
  const earlier = process.umask(0o077);
  let path: string;
  try {
    path = await prepareInitDirectory(directory, { nodePath: process.execPath, bundlePath, addonPath: ptyAddonPath() });
  } finally {
    process.umask(earlier);
  }
  const command = [`/${loaderName(process.arch)}`, '--library-path', '/lib', '/node', '/init.cjs'];
  const { stdout } = await run('chroot', ['--userspec=12345:12345', path, ...command]);
  expect(stdout).toBe('12345 true\n');
  expect((await stat(join(path, 'run'))).mode & 0o777).toBe(0o700);
});

test('I-38: it is named after its content: made once, also by concurrent calls, and again for another bundle', async () => {
  const first = await bundle('1');
  const options = { nodePath: process.execPath, bundlePath: first };
  const made = await Promise.all([1, 2, 3].map(() => prepareInitDirectory(directory, options)));
  expect(new Set(made).size).toBe(1);
  const before = (await stat(join(made[0] ?? '', 'node'))).ino;
  expect(await prepareInitDirectory(directory, options)).toBe(made[0]);
  expect((await stat(join(made[0] ?? '', 'node'))).ino).toBe(before);
  await bundle('2');
  expect(await prepareInitDirectory(directory, options)).not.toBe(made[0]);
  expect((await readdir(directory)).filter((name) => name.endsWith('.tmp'))).toEqual([]);
});

test('I-38: a cached digest is not used for another file of the same name, size and time, and the cache may be damaged', async () => {
  const options = { nodePath: process.execPath, bundlePath: await bundle('3') };
  const made = await prepareInitDirectory(directory, options);
  const cache = join(directory, 'digests.json');
  expect(await readFile(cache, 'utf8')).toMatch(/"[0-9a-f]{64}"/);
  // Another file of the same size and time, moved into its place.
  const { atime, mtime } = await stat(options.bundlePath);
  await writeFile(join(directory, 'other.cjs'), '4');
  await utimes(join(directory, 'other.cjs'), atime, mtime);
  await rename(join(directory, 'other.cjs'), options.bundlePath);
  expect(await prepareInitDirectory(directory, options)).not.toBe(made);
  await bundle('3');
  await writeFile(cache, '{"half');
  expect(await prepareInitDirectory(directory, options)).toBe(made);
});

test('reports a program that does not exist', async () => {
  const options = { nodePath: join(directory, 'no-node'), bundlePath: await bundle('1') };
  await expect(prepareInitDirectory(directory, options)).rejects.toThrow(/no-node/);
});
