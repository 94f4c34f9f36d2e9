/** Builds what runs as few files: init, which runs in every sandbox, and the commands that people wait for. */
import { glob, mkdir, mkdtemp, readdir, rename, rm, stat, symlink, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { build } from 'esbuild';
import { buildInitBundle } from '../packages/init/src/bundle.ts';

const root = join(import.meta.dirname, '..');
/** How long bundles that were replaced stay: commands that were started from them still load parts. Milliseconds. */
const keepMs = 3_600_000;

/**
 * `.cache/cli/main.js`: the CLI in a few files, which start in half the time of some 300 sources. The launcher takes it as long as
 * nothing in the sources is newer. A link is replaced, so that a command that starts meanwhile finds the old files or the new ones.
 */
async function buildCliBundle(): Promise<void> {
  const cache = join(root, '.cache');
  await mkdir(cache, { recursive: true });
  if (await isFresh(join(cache, 'cli', 'main.js'))) return;
  const began = new Date();
  const directory = await mkdtemp(join(cache, 'cli-'));
  await build({
    entryPoints: [join(root, 'packages/cli/src/main.ts')],
    outdir: directory,
    bundle: true,
    splitting: true,
    platform: 'node',
    target: 'node26',
    format: 'esm',
    conditions: ['development'],
    minifyWhitespace: true,
    legalComments: 'none',
    // They find files of theirs beside their sources, and no command that is bundled for needs them.
    external: ['@drover/agent', '@drover/control-plane', '@drover/gateway', '@drover/init'],
    // Packages in CommonJS ask for Node's own modules with it.
    banner: { js: "import { createRequire as bundleRequire } from 'node:module'; const require = bundleRequire(import.meta.url);" },
  });
  // What is touched while it is read counts as newer.
  await utimes(join(directory, 'main.js'), began, began);
  const link = `${directory}.link`;
  await symlink(directory, link);
  await rename(link, join(cache, 'cli'));
  for (const name of await readdir(cache)) {
    const path = join(cache, name);
    if (!name.startsWith('cli-') || path === directory) continue;
    // Another `up` may be at it too: gone is gone.
    const made = await stat(path).then(
      ({ mtimeMs }) => mtimeMs,
      () => Number.POSITIVE_INFINITY,
    );
    if (began.getTime() - made > keepMs) await rm(path, { recursive: true, force: true });
  }
}

/** The same question as the launcher's. */
async function isFresh(bundle: string): Promise<boolean> {
  const made = await stat(bundle).catch(() => undefined);
  if (made === undefined) return false;
  for await (const path of glob('packages/*/src/**', { cwd: root })) {
    const { mtimeMs } = await stat(join(root, path)).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
    if (mtimeMs > made.mtimeMs) return false;
  }
  return true;
}

await Promise.all([buildInitBundle(), buildCliBundle()]);
