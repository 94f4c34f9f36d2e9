import { execFile } from 'node:child_process';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';

const root = join(import.meta.dirname, '..');
let copy: string;

beforeAll(async () => {
  copy = await mkdtemp(join(tmpdir(), 'drover-checks-'));
  const sources = (path: string): boolean => !/\/(?:node_modules|dist)(?:\/|$)/.test(path.slice(root.length));
  for (const part of ['packages', 'e2e', 'bench']) await cp(join(root, part), join(copy, part), { recursive: true, filter: sources });
});
afterAll(() => rm(copy, { recursive: true }));

function checkImports(): Promise<{ failed: boolean; output: string }> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', join(root, 'scripts', 'imports.ts'), copy],
      (error, stdout, stderr) => resolve({ failed: error !== null, output: stdout + stderr }),
    );
  });
}

async function planted(files: Readonly<Record<string, string>>): Promise<{ failed: boolean; output: string }> {
  for (const [path, text] of Object.entries(files)) await writeFile(join(copy, path), text);
  try {
    return await checkImports();
  } finally {
    for (const path of Object.keys(files)) await rm(join(copy, path));
  }
}

test('the imports of the repository go down only', async () => {
  expect(await checkImports()).toEqual({ failed: false, output: expect.stringMatching(/^\d+ files import in the right direction\n$/) });
});

test('an import upwards fails the check, also of a type alone', async () => {
  const { failed, output } = await planted({
    'packages/foundation/src/planted.ts': "import type { Store } from '@drover/control-plane';\nexport type Planted = Store;\n",
  });
  expect(failed).toBe(true);
  expect(output).toContain('layers-foundation: packages/foundation/src/planted.js');
});

test('a path into another package fails the check', async () => {
  const { failed, output } = await planted({
    'packages/sdk/src/planted.ts': "import { version } from '../../foundation/src/version.ts';\nexport const planted = version;\n",
  });
  expect(failed).toBe(true);
  expect(output).toContain('no-foreign-src: packages/sdk/src/planted.js');
});

test('a circle fails the check', async () => {
  const { failed, output } = await planted({
    'packages/foundation/src/planted-a.ts': "import { b } from './planted-b.ts';\nexport const a = (): unknown => b;\n",
    'packages/foundation/src/planted-b.ts': "import { a } from './planted-a.ts';\nexport const b = (): unknown => a;\n",
  });
  expect(failed).toBe(true);
  expect(output).toContain('no-circular: packages/foundation/src/planted-a.js');
});
