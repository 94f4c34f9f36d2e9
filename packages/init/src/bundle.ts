import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { writeFileAtomic } from '@drover/foundation';

const packageRoot = dirname(import.meta.dirname);

/**
 * The flags of init's Node.js, before the path of the bundle. No worker threads for V8, and none that parses the public roots.
 * `--disable-sigusr1`: the workload must not open a debugger in PID 1. `--openssl-config`: the /etc/ssl/openssl.cnf of the image must not name
 * libraries for it to load. No flags of V8: with any of them it rejects the code cache of Node.js's own modules, and the start takes twice as
 * long.
 */
export const initNodeFlags: readonly string[] = [
  '--v8-pool-size=0',
  '--use-openssl-ca',
  '--disable-sigusr1',
  '--openssl-config=/dev/null',
  '--disable-warning=ExperimentalWarning',
];

/** Where `buildInitBundle` puts init: one CommonJS file, to be copied to `/.drover/init.cjs`. */
export function initBundlePath(): string {
  return join(packageRoot, 'dist', 'bundle', 'init.cjs');
}

/** The native addon for terminals, to be copied to `/.drover/pty.node`; undefined when this platform has none. It needs libutil.so.1. */
export function ptyAddonPath(): string | undefined {
  const require = createRequire(import.meta.url);
  try {
    const path = require.resolve(`@lydell/node-pty-${process.platform}-${process.arch}/pty.node`);
    return existsSync(path) ? path : undefined;
  } catch {
    // The package for this platform was not installed: sandboxes work, terminals do not.
    return undefined;
  }
}

/** Bundles init into one file, and returns its path. It needs the workspace's esbuild, so published packages contain the result. */
export async function buildInitBundle(outfile: string = initBundlePath()): Promise<string> {
  const { build } = await import('esbuild');
  await mkdir(dirname(outfile), { recursive: true });
  const { outputFiles } = await build({
    entryPoints: [join(packageRoot, 'src', 'entry.ts')],
    outfile,
    write: false,
    bundle: true,
    platform: 'node',
    target: 'node26',
    format: 'cjs',
    conditions: ['development'],
    minify: true,
    keepNames: false,
    legalComments: 'none',
    // In place of the platform's global, wherever a library uses it.
    inject: [join(packageRoot, 'src', 'server', 'headers.ts')],
  });
  // Replaced as a whole: another process may be starting init from it.
  await writeFileAtomic(outfile, outputFiles[0]?.contents ?? '', { mode: 0o644, sync: false });
  return outfile;
}
