/**
 * Packs every workspace package for publication: `node scripts/pack.ts DIRECTORY` (after `npm run build`).
 *
 * The workspace's manifests name the sources under the `development` condition, which bundlers and dev servers also set. A published
 * package has only compiled code, so this script copies each package and rewrites its manifest.
 */
import { execFileSync } from 'node:child_process';
import { cpSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';

interface Manifest {
  readonly name: string;
  readonly exports: Readonly<Record<string, { readonly default: string }>>;
  readonly [field: string]: unknown;
}

const root = join(import.meta.dirname, '..');
const out = resolve(process.argv[2] ?? join(root, '.cache', 'pack'));
mkdirSync(out, { recursive: true });

const scratch = mkdtempSync(join(tmpdir(), 'drover-pack-'));
const packages: string[] = [];
try {
  for (const path of globSync('packages/*/package.json', { cwd: root }).sort()) {
    const from = join(root, dirname(path));
    const to = join(scratch, dirname(path));
    const manifest = JSON.parse(readFileSync(join(from, 'package.json'), 'utf8')) as Manifest;
    const testing = (name: string): boolean => /\.test\.|tsbuildinfo$|[/\\]testing([/\\]|\.|$)|\.map$/.test(name);
    cpSync(join(from, 'dist'), join(to, 'dist'), { recursive: true, filter: (source) => !testing(source.slice(from.length)) });
    for (const extra of ['bin', 'README.md']) cpIfThere(join(from, extra), join(to, extra));
    cpIfThere(join(root, 'LICENSE'), join(to, 'LICENSE'));
    const exports = Object.fromEntries(
      Object.entries(manifest.exports)
        .filter(([name]) => !name.includes('testing'))
        .map(([name, { default: code }]) => [name, { types: code.replace(/\.js$/, '.d.ts'), default: code }]),
    );
    writeFileSync(join(to, 'package.json'), `${JSON.stringify({ ...manifest, exports, files: ['dist', 'bin'] }, undefined, 2)}\n`);
    packages.push(to);
  }
  execFileSync('npm', ['pack', '--silent', '--ignore-scripts', '--pack-destination', out, ...packages], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
} finally {
  rmSync(scratch, { recursive: true });
}

function cpIfThere(from: string, to: string): void {
  try {
    cpSync(from, to, { recursive: true });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
}
