import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, cp, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { version } from '@drover/foundation';
import { isAlive } from './harness/index.ts';

const root = join(import.meta.dirname, '..');
let clone: string;

/** Copies the contents of a clone of this tree: the tracked files, and the untracked ones that are not ignored. */
beforeAll(async () => {
  clone = await mkdtemp(join(tmpdir(), 'drover-clone-'));
  const files = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], { cwd: root, encoding: 'utf8' });
  for (const file of new Set(files.split('\0').filter((name) => name !== ''))) {
    await mkdir(dirname(join(clone, file)), { recursive: true });
    await cp(join(root, file), join(clone, file)).catch((error: NodeJS.ErrnoException) => {
      // The file is deleted and its deletion not yet committed.
      if (error.code !== 'ENOENT') throw error;
    });
  }
});
afterAll(() => rm(clone, { recursive: true }));

/** PATH without this repository's own node: a user has the machine's npm and Node.js. */
const path = (process.env['PATH'] ?? '')
  .split(':')
  .filter((directory) => !directory.includes('node_modules'))
  .join(':');

function launch(...args: string[]): Promise<{ code: number; stdout: string; stderr: string; ms: number }> {
  const began = performance.now();
  return new Promise((resolve) => {
    const child = execFile(
      join(clone, 'drover'),
      args,
      { env: { PATH: path, HOME: clone, CI: 'true' }, timeout: 230_000 },
      (_, stdout, stderr) => resolve({ code: child.exitCode ?? -1, stdout, stderr, ms: performance.now() - began }),
    );
  });
}

describe('./drover in a clone without an installation', () => {
  test('Ctrl-C ends the first run even if npm does not end, and leaves no npm behind', async () => {
    const programs = await mkdtemp(join(tmpdir(), 'drover-npm-'));
    onTestFinished(async () => await rm(programs, { recursive: true }));
    const pidFile = join(programs, 'pid');
    await writeFile(
      join(programs, 'npm'),
      `#!/bin/sh\ntrap '' INT\necho $$ > ${pidFile}.new\nmv ${pidFile}.new ${pidFile}\nexec sleep 1d\n`,
    );
    await chmod(join(programs, 'npm'), 0o755);
    const child = spawn(join(clone, 'drover'), ['--version'], {
      env: { PATH: `${programs}:${path}`, HOME: clone, CI: 'true' },
      // A terminal sends Ctrl-C to a process group.
      detached: true,
      stdio: 'ignore',
    });
    const ended = once(child, 'exit');
    await expect.poll(() => existsSync(pidFile)).toBe(true);
    process.kill(-(child.pid ?? 0), 'SIGINT');
    const [code, signal] = (await ended) as [number | null, string | null];
    expect(signal ?? code).toSatisfy((end) => end === 130 || end === 'SIGINT');
    const npm = Number(await readFile(pidFile, 'utf8'));
    await expect.poll(() => isAlive(npm)).toBe(false);
  });

  test('two concurrent first runs install once, report it in a line, and both work', async () => {
    const both = await Promise.all([launch('--version'), launch('--version')]);
    for (const { code, stdout } of both) expect({ code, stdout }).toEqual({ code: 0, stdout: `${version}\n` });
    const messages = both.map(({ stderr }) => stderr.trim()).sort();
    expect(messages[0]).toMatch(/^drover: another run is installing; waiting for it$/);
    expect(messages[1]).toMatch(/^drover: installing the npm packages, .*$/);
  });

  test('the next run installs nothing and prints nothing', async () => {
    const stamp = (await stat(join(clone, 'node_modules', '.drover-stamp'))).mtimeMs;
    expect(await launch('--version')).toMatchObject({ code: 0, stdout: `${version}\n`, stderr: '' });
    expect((await stat(join(clone, 'node_modules', '.drover-stamp'))).mtimeMs).toBe(stamp);
  });

  test('uses the pinned Node.js, independent of the machine’s', async () => {
    const { stdout } = await launch('version', '-o', 'json');
    expect((JSON.parse(stdout) as { client: { node: string } }).client.node).toBe('v26.10.0');
  });

  test('leaves the lock file unchanged', () => {
    const before = execFileSync('sha256sum', [join(root, 'package-lock.json')], { encoding: 'utf8' }).split(' ')[0];
    expect(execFileSync('sha256sum', [join(clone, 'package-lock.json')], { encoding: 'utf8' }).split(' ')[0]).toBe(before);
  });
});
