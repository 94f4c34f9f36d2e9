/**
 * Writes docs/limits.md from the packages' limits.ts: one row a limit, with what its comment says.
 * With `--check`, writes nothing and fails when the page is stale.
 */
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..');
const page = join(root, 'docs', 'limits.md');
const declaration = /\/\*\*((?:(?!\*\/)[\s\S])*)\*\/\s*export const (\w+)(?:: [^=]+)? = ([^;]+);/g;

async function rowsOf(name: string): Promise<readonly string[]> {
  let source: string;
  try {
    source = await readFile(join(root, 'packages', name, 'src', 'limits.ts'), 'utf8');
  } catch {
    // A package without limits of its own.
    return [];
  }
  const rows = [...source.matchAll(declaration)].map(([, comment = '', limit = '', value = '']) => {
    const words = comment
      .replaceAll(/^\s*\* ?/gm, '')
      .replaceAll(/\s+/g, ' ')
      .replaceAll('|', '\\|')
      .trim();
    return `| \`${limit}\` | \`${value.replaceAll(/\s+/g, ' ').replaceAll('|', '\\|')}\` | ${words} |`;
  });
  const declared = source.match(/^export const /gm)?.length ?? 0;
  if (rows.length !== declared)
    throw new Error(`packages/${name}/src/limits.ts: ${declared} limits, but ${rows.length} have a comment that says what they are`);
  return rows;
}

const sections: string[] = [];
for (const name of (await readdir(join(root, 'packages'))).toSorted()) {
  const rows = await rowsOf(name);
  if (rows.length > 0)
    sections.push(
      [`## ${name}`, '', '| limit | value | what it is, and what happens when it is hit |', '| --- | --- | --- |', ...rows].join('\n'),
    );
}
const text = `# Limits

Every queue, buffer, body, retry and wait in Drover is bounded. This page lists the bounds, a table a package; the package is the owner. It is made from the \`limits.ts\` files by \`npm run generate\`; \`npm run check\` fails when it is stale.

${sections.join('\n\n')}
`;
if (process.argv.includes('--check')) {
  if ((await readFile(page, 'utf8').catch(() => '')) !== text) {
    console.error('docs/limits.md is stale: run npm run generate');
    process.exit(1);
  }
} else {
  await writeFile(page, text);
}
