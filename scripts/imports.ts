/**
 * Checks all imports against .dependency-cruiser.cjs.
 *
 * dependency-cruiser reads TypeScript with the compiler's JavaScript API, which TypeScript 7 no longer has. It therefore reads
 * a copy of the sources without types, in which `import type` is a plain import, so that the rules apply to types too.
 *
 * Usage: node scripts/imports.ts [ROOT]
 */
import { globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire, stripTypeScriptTypes } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { cruise, type ICruiseResult, type IConfiguration } from 'dependency-cruiser';
import { layerProblems, withExceptions, type Import, type Layers } from './layers.ts';

const root = resolve(process.argv[2] ?? join(import.meta.dirname, '..'));

function withoutTypes(source: string): string {
  const values = source
    .replace(/^import type /gm, 'import ')
    .replace(/^export type (\*|\{[^}]*\} from)/gm, 'export $1')
    // `import { type A, b }` becomes `import { b }` or `import {}`, and both are still imports.
    .replace(/((?:from|import)\s*\(?\s*['"]\.{1,2}\/[^'"]+)\.ts(['"])/g, '$1.js$2');
  return stripTypeScriptTypes(values, { mode: 'strip' });
}

function copyWithoutTypes(to: string): number {
  const sources = globSync(['packages/*/src/**/*.ts', 'e2e/**/*.ts', 'bench/**/*.ts'], { cwd: root });
  for (const path of sources) {
    const target = join(to, path.replace(/\.ts$/, '.js'));
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, withoutTypes(readFileSync(join(root, path), 'utf8')));
  }
  for (const path of globSync('packages/*/package.json', { cwd: root })) {
    const manifest = JSON.parse(readFileSync(join(root, path), 'utf8')) as {
      name: string;
      exports: Record<string, { development: string }>;
    };
    const exports = Object.fromEntries(
      Object.entries(manifest.exports).map(([name, at]) => [name, at.development.replace(/\.ts$/, '.js')]),
    );
    writeFileSync(join(to, path), JSON.stringify({ ...manifest, exports }));
    const link = join(to, 'node_modules', manifest.name);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(join(to, dirname(path)), link);
  }
  return sources.length;
}

/** Returns the imports with the paths of the sources, which differ from the copy's only in the extension. */
function importsOf({ modules }: ICruiseResult): readonly Import[] {
  const sourceOf = (path: string): string => path.replace(/\.js$/, '.ts');
  return modules.flatMap(({ source, dependencies }) =>
    dependencies.map(({ resolved, dynamic }) => ({ from: sourceOf(source), to: sourceOf(resolved), dynamic })),
  );
}

const scratch = mkdtempSync(join(tmpdir(), 'drover-imports-'));
try {
  const count = copyWithoutTypes(scratch);
  const config = createRequire(import.meta.url)('../.dependency-cruiser.cjs') as IConfiguration & {
    readonly layers: Record<string, Layers>;
  };
  const exceptions = JSON.parse(readFileSync(join(import.meta.dirname, 'structure-exceptions.json'), 'utf8')) as {
    readonly imports: string[];
  };
  process.chdir(scratch);
  const { output } = await cruise(['packages', 'e2e', 'bench'], {
    ...config.options,
    baseDir: scratch,
    validate: true,
    ruleSet: { forbidden: config.forbidden ?? [] },
  });
  const { violations } = (output as ICruiseResult).summary;
  const problems = [
    ...(violations as ((typeof violations)[number] & { comment?: string })[]).map(
      ({ from, to, rule, comment }) => `${rule.name}: ${from} → ${to}${comment === undefined ? '' : ` (${comment})`}`,
    ),
    ...withExceptions(layerProblems(importsOf(output as ICruiseResult), config.layers), exceptions.imports),
  ];
  for (const problem of problems) console.error(problem);
  if (problems.length === 0) console.log(`${count} files import in the right direction`);
  process.exitCode = problems.length === 0 && count > 0 ? 0 : 1;
} finally {
  process.chdir('/');
  rmSync(scratch, { recursive: true });
}
