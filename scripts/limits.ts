/**
 * Writes docs/limits.md from the packages' limits.ts: a row for each limit, with the text of its comment.
 * With `--check`, writes no file and fails when the page is stale.
 */
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..');
const page = join(root, 'docs', 'limits.md');
/** One limit: `export const name = value;`, or `name: value,` in the object `limits`. */
const declaration = /^(?:export const (?!limits\b)(\w+)(?::[^=]+)? = |  (\w+): )(.*?)[;,]\n/gms;
const comment = /\/\*\*((?:(?!\*\/)[\s\S])*)\*\/\s*$/;

const inCell = (text: string): string =>
  text
    .replaceAll(/^\s*\* ?/gm, '')
    .replaceAll(/\s+/g, ' ')
    .replaceAll('|', '\\|')
    .trim();

async function rowsOf(name: string): Promise<readonly string[]> {
  const path = join('packages', name, 'src', 'limits.ts');
  // Packages without limits have no such file.
  const source = await readFile(join(root, path), 'utf8').catch(() => '');
  const rows: string[] = [];
  let end = 0;
  let words = '';
  for (const match of source.matchAll(declaration)) {
    const [whole, constant, property, value = ''] = match;
    const limit = constant ?? property ?? '';
    // A limit directly below another one forms a pair with it, and shares its comment.
    const between = source.slice(end, match.index);
    words = inCell(comment.exec(between)?.[1] ?? (between.trim() === '' ? words : ''));
    if (words === '') throw new Error(`${path}: ${limit} has no comment that says what it is`);
    rows.push(`| \`${limit}\` | \`${inCell(value)}\` | ${words} |`);
    end = match.index + whole.length;
  }
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
