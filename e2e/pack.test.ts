import { execFile, execFileSync } from 'node:child_process';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { version } from '@drover/foundation';

const root = join(import.meta.dirname, '..');
const path = `${join(root, 'node_modules', '.bin')}:${process.env['PATH'] ?? ''}`;
/** PATH without this repository's own programs, as a user has it. */
const outsidePath = (process.env['PATH'] ?? '')
  .split(':')
  .filter((directory) => !directory.includes('node_modules'))
  .join(':');
let tarballs: string;
let project: string;

beforeAll(async () => {
  tarballs = await mkdtemp(join(tmpdir(), 'drover-tarballs-'));
  project = await mkdtemp(join(tmpdir(), 'drover-project-'));
  const node = ['--conditions=development', '--disable-warning=ExperimentalWarning'];
  execFileSync('tsc', ['-b', 'packages/cli'], { cwd: root, env: { ...process.env, PATH: path } });
  execFileSync(process.execPath, [...node, 'scripts/bundles.ts'], { cwd: root });
  execFileSync(process.execPath, [...node, 'scripts/pack.ts', tarballs], { cwd: root });
  await writeFile(join(project, 'package.json'), '{ "private": true }\n');
  const files = (await readdir(tarballs)).map((name) => join(tarballs, name));
  execFileSync('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts', '--loglevel=error', ...files], {
    cwd: project,
    env: { PATH: outsidePath, HOME: project },
    stdio: ['ignore', 'ignore', 'inherit'],
  });
});
afterAll(async () => {
  await rm(tarballs, { recursive: true });
  await rm(project, { recursive: true });
});

function npx(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = execFile(
      'npx',
      ['--no-install', 'drover', ...args],
      { cwd: project, env: { PATH: outsidePath, HOME: project } },
      (_, stdout, stderr) => resolve({ code: child.exitCode ?? -1, stdout, stderr }),
    );
  });
}

test('every package is packed, compiled, without tests and without the workspace’s conditions', async () => {
  const packages = await readdir(join(root, 'packages'));
  expect((await readdir(tarballs)).length).toBe(packages.length);
  for (const name of await readdir(tarballs)) {
    const listed = execFileSync('tar', ['-tzf', join(tarballs, name)], { encoding: 'utf8' });
    expect(listed).not.toMatch(/\.test\.|\/src\/|tsbuildinfo/);
    const manifest = execFileSync('tar', ['-xzOf', join(tarballs, name), 'package/package.json'], { encoding: 'utf8' });
    expect(manifest).not.toContain('"development"');
  }
});

test('npx drover --version, from the tarballs in an empty directory', async () => {
  expect(await npx('--version')).toMatchObject({ code: 0, stdout: `${version}\n` });
});

test('npx drover doctor runs, on the pinned Node.js', async () => {
  const { stdout } = await npx('doctor', '-o', 'json');
  const findings = JSON.parse(stdout) as { name: string; level: string; message: string }[];
  expect(findings).toContainEqual(expect.objectContaining({ name: 'Node.js', level: 'ok', message: 'v26.10.0' }));
});

test('init’s bundle is in its package: sandboxes can start', () => {
  expect(execFileSync('ls', [join(project, 'node_modules/@drover/init/dist/bundle')], { encoding: 'utf8' })).toContain('init.cjs');
});
