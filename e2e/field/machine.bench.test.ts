import { chmod, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, processesUnder, repository, tool } from '../harness/index.ts';

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-bench-'));
  // The roots of sandboxes lie below. Their owners are not root and must be able to enter.
  await chmod(directory, 0o711);
});
afterAll(async () => await rm(directory, { recursive: true }));

function bench(...args: readonly string[]) {
  return execa('npm', ['run', '--silent', 'bench', '--', '--quick', ...args], {
    cwd: repository,
    env: { TMPDIR: directory },
    reject: false,
    stdin: 'ignore',
  });
}

/**
 * Lists the leftovers of a run: processes, interfaces in the pools of bench/main.ts, and files. The compile cache of npm's Node.js does not
 * count.
 */
const left = async (): Promise<readonly unknown[]> => [
  ...(await processesUnder(directory)),
  ...(await tool('ip', '-4', '-brief', 'address', 'show', 'to', '10.198.0.0/15')).split('\n').filter((line) => line !== ''),
  ...(await readdir(directory)).filter((name) => name !== 'node-compile-cache'),
];

describe('a benchmark that ends early reports its results, and leaves nothing behind:', () => {
  test('on a signal in the middle of a section', async () => {
    const run = bench('--only', 'create');
    let progress = '';
    let ended = false;
    void run.then(() => (ended = true));
    run.stderr.setEncoding('utf8').on('data', (text: string) => (progress += text));
    await eventually(
      'a first round is measured',
      () => {
        if (ended) throw new Error(`the benchmark ended: ${progress}`);
        return /create: \d+ rows/.test(progress);
      },
      180_000,
      () => progress,
    );
    expect(await processesUnder(directory)).not.toEqual([]);
    run.kill('SIGTERM');
    const { stdout, exitCode } = await run;
    expect(stdout).toMatch(/^\| runc run \| 1 \| \d+ \|/m);
    expect(stdout).toContain('Not measured: create (not finished, as interrupted by SIGTERM).');
    expect(exitCode).not.toBe(0);
    await eventually('nothing is left', async () => (await left()).length === 0, 60_000, left);
  }, 280_000);

  test('at its time limit during its start', async () => {
    const { stdout, exitCode } = await bench('--only', 'create', '--limit', '3');
    expect(stdout).toContain('Not measured: create (not finished, as it took longer than 3 s).');
    expect(exitCode).toBe(1);
    expect(await left()).toEqual([]);
  }, 120_000);
});
