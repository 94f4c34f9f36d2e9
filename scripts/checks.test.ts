import { execFile } from 'node:child_process';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { layerProblems, withExceptions } from './layers.ts';

const root = join(import.meta.dirname, '..');
let copy: string;

beforeAll(async () => {
  copy = await mkdtemp(join(tmpdir(), 'drover-checks-'));
  const sources = (path: string): boolean => !/\/(?:node_modules|dist)(?:\/|$)/.test(path.slice(root.length));
  for (const part of ['packages', 'e2e', 'bench']) await cp(join(root, part), join(copy, part), { recursive: true, filter: sources });
});
afterAll(() => rm(copy, { recursive: true }));

interface Outcome {
  readonly failed: boolean;
  readonly output: string;
}

function run(script: 'imports.ts' | 'sizes.ts' | 'kernel.sh'): Promise<Outcome> {
  const path = join(root, 'scripts', script);
  const [program, args] = script.endsWith('.sh') ? ['sh', [path]] : [process.execPath, ['--disable-warning=ExperimentalWarning', path]];
  return new Promise((resolve) => {
    execFile(program, [...args, copy], (error, stdout, stderr) => resolve({ failed: error !== null, output: stdout + stderr }));
  });
}

async function planted(files: Readonly<Record<string, string>>, script: Parameters<typeof run>[0] = 'imports.ts'): Promise<Outcome> {
  for (const [path, text] of Object.entries(files)) await writeFile(join(copy, path), text);
  try {
    return await run(script);
  } finally {
    for (const path of Object.keys(files)) await rm(join(copy, path));
  }
}

/** Time limit of a run. It reads and resolves every import of the repository, which takes seconds of CPU time. Milliseconds. */
const importsMs = 240_000;

test('the imports of the repository go only downwards', { timeout: importsMs }, async () => {
  expect(await run('imports.ts')).toEqual({ failed: false, output: expect.stringMatching(/^\d+ files import in the right direction\n$/) });
});

describe('fails the check:', () => {
  const store = 'packages/control-plane/src/store/planted.ts';
  const volumes = 'packages/control-plane/src/volumes/planted.ts';
  let problems: readonly string[];

  // One run checks all of them, because no file imports another's.
  beforeAll(async () => {
    const { failed, output } = await planted({
      'packages/foundation/src/planted.ts': "import type { Store } from '@drover/control-plane';\nexport type Planted = Store;\n",
      'packages/sdk/src/planted.ts': "import { version } from '../../foundation/src/version.ts';\nexport const planted = version;\n",
      'packages/foundation/src/planted-a.ts': "import { b } from './planted-b.ts';\nexport const a = (): unknown => b;\n",
      'packages/foundation/src/planted-b.ts': "import { a } from './planted-a.ts';\nexport const b = (): unknown => a;\n",
      [store]: "import type { Step } from '../reconcile/index.ts';\nexport type Planted = Step;\n",
      [volumes]: "export { Placement } from '../placement/placement.ts';\n",
    });
    expect(failed).toBe(true);
    problems = output.trimEnd().split('\n');
  }, importsMs);

  test.each([
    ['an import upwards, also of a type alone', 'layers-foundation: packages/foundation/src/planted.js'],
    ['a path into another package', 'no-foreign-src: packages/sdk/src/planted.js'],
    ['an import cycle', 'no-circular: packages/foundation/src/planted-a.js'],
  ])('%s', (_, beginning) => expect(problems).toContainEqual(expect.stringContaining(beginning)));

  test('an import from a lower to an upper folder, also of a type alone', () => {
    expect(problems.filter((problem) => problem.includes(store.replace(/\.ts$/, '')))).toEqual([
      `${store} imports packages/control-plane/src/reconcile/index.ts, but reconcile does not lie below store`,
    ]);
  });

  test('an import past the index.ts of another folder', () => {
    expect(problems.filter((problem) => problem.includes(volumes.replace(/\.ts$/, '')))).toEqual([
      `${volumes} imports packages/control-plane/src/placement/placement.ts: import placement through its index.ts`,
    ]);
  });
});

test('reading /proc outside packages/linux fails the check', async () => {
  expect(await run('kernel.sh')).toEqual({ failed: false, output: '' });
  const text = "import { readFileSync } from 'node:fs';\nexport const planted = readFileSync('/proc/meminfo');\n";
  const { failed, output } = await planted({ 'packages/agent/src/planted.ts': text }, 'kernel.sh');
  expect(failed).toBe(true);
  expect(output).toContain('packages/agent/src/planted.ts:2:');
});

test('a folder without a layer fails the check', () => {
  const imports = [{ from: 'packages/control-plane/src/new/a.ts', to: 'packages/control-plane/src/limits.ts', dynamic: false }];
  const { exception, sentence } = layerProblems(imports, { 'control-plane': [['limits.ts']] })[0] ?? {};
  expect(exception).toBe('packages/control-plane/src/new/a.ts (no layer)');
  expect(sentence).toContain('is in no layer');
});

test('an exception that is no longer needed fails the check', () => {
  const problem = { exception: 'a', sentence: 'a is wrong' };
  expect(withExceptions([problem], ['a'])).toEqual([]);
  expect(withExceptions([problem], ['a', 'b'])).toEqual([expect.stringContaining('remove "b"')]);
  expect(withExceptions([problem], [])).toEqual(['a is wrong']);
});

test('only listed files exceed the size limits', async () => {
  expect(await run('sizes.ts')).toEqual({ failed: false, output: expect.stringMatching(/^\d+ files and functions are still too long/) });
});

test('a long file and a long function fail the check; blank lines and comments do not count', async () => {
  const lines = (count: number): string => Array.from({ length: count }, (_, i) => `  console.log(${i});\n\n  // ${i}\n`).join('');
  const path = 'packages/foundation/src/planted.ts';
  const long = await planted({ [path]: `export function planted(): void {\n${lines(61)}}\n` }, 'sizes.ts');
  expect(long.failed).toBe(true);
  expect(long.output).toContain(`${path}: `);
  expect(long.output).toContain('planted');
  expect((await planted({ [path]: `export function planted(): void {\n${lines(58)}}\n` }, 'sizes.ts')).failed).toBe(false);
  expect((await planted({ [path]: lines(401) }, 'sizes.ts')).failed).toBe(true);
});
