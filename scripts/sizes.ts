/**
 * Reports files of product code over 400 lines and functions over 60, without blank lines and comments: they hold two concepts.
 * structure-exceptions.json lists the exceptions, and may only shrink.
 *
 * Usage: node scripts/sizes.ts [ROOT]
 */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { isTest, withExceptions, type Problem } from './layers.ts';

interface Diagnostic {
  readonly message: string;
  readonly code: string;
  readonly filename: string;
}

const root = resolve(process.argv[2] ?? join(import.meta.dirname, '..'));
const tool = join(import.meta.dirname, '../node_modules/.bin/oxlint');

function diagnostics(): readonly Diagnostic[] {
  const config = join(import.meta.dirname, 'sizes.oxlintrc.json');
  const output = execFileSync(tool, ['--config', config, '--format', 'json', 'packages'], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  return (JSON.parse(output) as { readonly diagnostics: readonly Diagnostic[] }).diagnostics;
}

function problemOf({ message, code, filename }: Diagnostic): Problem {
  const path = relative(root, resolve(root, filename));
  const name = /`([^`]+)`/.exec(message)?.[1] ?? 'a function without a name';
  return {
    exception: code.includes('max-lines-per-function') ? `${path}: ${name}` : path,
    sentence: `${path}: ${message} Split it by concept; if it only moved, move its line in scripts/structure-exceptions.json.`,
  };
}

const found = diagnostics()
  .map(problemOf)
  .filter(({ exception }) => !isTest(exception.split(':')[0] ?? ''));
const { sizes } = JSON.parse(readFileSync(join(import.meta.dirname, 'structure-exceptions.json'), 'utf8')) as { readonly sizes: string[] };
const problems = withExceptions(found, sizes);
for (const problem of problems) console.error(problem);
if (problems.length === 0) console.log(`${sizes.length} files and functions are still too long, and no other`);
process.exitCode = problems.length === 0 ? 0 : 1;
