/** Builds the bundles, which start faster than the sources: of init, which runs in every sandbox, and of the program itself. */
import { createHash } from 'node:crypto';
import { chmod, glob, mkdir, mkdtemp, readdir, readFile, readlink, rename, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { builtinModules } from 'node:module';
import { basename, join, relative } from 'node:path';
import { build, type Plugin } from 'esbuild';
import { buildInitBundle, initBundlePath } from '../packages/init/src/bundle.ts';

const root = join(import.meta.dirname, '..');
const cache = join(root, '.cache');
/** Retention of a replaced bundle, extended while a command that was started from it still runs. Milliseconds. */
const keepMs = 24 * 3_600_000;

/**
 * Imports Node's own modules as CommonJS does. An ES module import reads every property of a module, and one of `node:http`
 * loads an HTTP client and a WebSocket. That costs every command 50 ms.
 */
const builtins: Plugin = {
  name: 'builtins',
  setup(made) {
    const known = new Set(builtinModules);
    made.onResolve({ filter: /^(?:node:)?[a-z0-9_/]+$/ }, ({ path, kind, importer }) => {
      const name = path.replace(/^node:/, '');
      if (kind !== 'import-statement' || !(path.startsWith('node:') || known.has(name))) return undefined;
      // A module for each importer stays in its file. A shared one would become a separate file, which costs a start a millisecond.
      return { path: name, suffix: `?${relative(root, importer)}`, namespace: 'builtin', sideEffects: false };
    });
    made.onLoad({ filter: /.*/, namespace: 'builtin' }, ({ path }) => ({
      contents: `module.exports = process.getBuiltinModule('node:${path}')`,
      loader: 'js',
    }));
  },
};

/** Resolves init's bundle to the directory of its sources, independent of the bundle that contains the code. */
const initPlace: Plugin = {
  name: 'init-place',
  setup(made) {
    const source = join(root, 'packages', 'init', 'src');
    made.onLoad({ filter: /\/packages\/init\/src\/bundle\.ts$/ }, async ({ path }) => ({
      contents: (await readFile(path, 'utf8')).replaceAll(
        'import.meta.dirname',
        // The path is relative to the bundle's directory, so a clone can be moved.
        `(import.meta.dirname + ${JSON.stringify(`/${relative(join(cache, 'cli-'), source)}`)})`,
      ),
      loader: 'ts',
    }));
  },
};

/**
 * Builds `.cache/cli/main.js`: the program in a few files, which start in half the time of some 300 sources. The launcher uses it while no
 * source is newer. A symbolic link is replaced atomically, so that a concurrent start finds the old files or the new ones. Its target is
 * named by its content and never changes, because a running command loads parts of its bundle later.
 */
async function buildCliBundle(began: Date): Promise<void> {
  const { outputFiles } = await build({
    // The agent starts threads and programs from separate files.
    entryPoints: [
      'cli/src/main.ts',
      'agent/src/images/unpack/unpack-thread.ts',
      'linux/src/root-replacement-thread.ts',
      'agent/src/sandboxes/copy-ended-program.ts',
    ].map((path) => join(root, 'packages', path)),
    entryNames: '[name]',
    // No file is written there; the option only determines names.
    outdir: cache,
    write: false,
    bundle: true,
    splitting: true,
    platform: 'node',
    target: 'node26',
    format: 'esm',
    conditions: ['development'],
    minifyWhitespace: true,
    legalComments: 'none',
    // Only the published package builds init's bundle at run time.
    external: ['esbuild'],
    plugins: [builtins, initPlace],
    // Without this, as in init's bundle, each process loads all of fetch for the headers of gRPC.
    inject: [join(root, 'packages', 'init', 'src', 'server', 'headers.ts')],
    // CommonJS packages require Node's own modules with it.
    banner: { js: "import { createRequire as bundleRequire } from 'node:module'; const require = bundleRequire(import.meta.url);" },
  });
  const hash = createHash('sha256');
  for (const { path, contents } of outputFiles) hash.update(`${basename(path)} ${contents.length}\n`).update(contents);
  const directory = join(cache, `cli-${hash.digest('hex').slice(0, 16)}`);
  const made = await mkdtemp(join(cache, 'making-'));
  for (const { path, contents } of outputFiles) await writeFile(join(made, basename(path)), contents);
  // Every user who can read the sources can read the bundle.
  await chmod(made, 0o755);
  await rename(made, directory).catch(async (error: NodeJS.ErrnoException) => {
    await rm(made, { recursive: true, force: true });
    // A bundle with the same content already exists.
    if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
  });
  // The build's start as its time: a source that changed during the build counts as newer.
  await utimes(join(directory, 'main.js'), began, began);
  const former = await readlink(join(cache, 'cli')).catch(() => undefined);
  const link = `${made}.link`;
  await symlink(basename(directory), link);
  await rename(link, join(cache, 'cli'));
  // The retention starts now.
  if (former !== undefined) await utimes(join(cache, basename(former)), began, began).catch(() => undefined);
  await removeOld(cache, directory);
}

async function removeOld(cache: string, current: string): Promise<void> {
  for (const name of await readdir(cache)) {
    const path = join(cache, name);
    if (!/^(cli|making)-/.test(name) || path === current) continue;
    // A concurrent `up` may have removed it.
    const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
    if (Date.now() - mtimeMs > keepMs && !(await isRunning(path))) await rm(path, { recursive: true, force: true });
  }
}

/** Whether a command that was started from the bundle still runs. Its command line has the path without links. */
async function isRunning(directory: string): Promise<boolean> {
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const argv = await readFile(join('/proc', pid, 'cmdline'), 'utf8').catch(() => '');
    if (argv.includes(`${directory}/`)) return true;
  }
  return false;
}

/** Whether the bundles are newer than all sources. The launcher has the same condition. */
async function isFresh(): Promise<boolean> {
  const times = await Promise.all([join(cache, 'cli', 'main.js'), initBundlePath()].map(timeOf));
  const made = Math.min(...times.map((time) => time ?? 0));
  for await (const path of glob(['packages/*/src', 'packages/*/src/**', 'package-lock.json', 'scripts/bundles.ts'], { cwd: root }))
    if (((await timeOf(join(root, path))) ?? Number.POSITIVE_INFINITY) > made) return false;
  return true;
}

async function timeOf(path: string): Promise<number | undefined> {
  return (await stat(path).catch(() => undefined))?.mtimeMs;
}

if (!(await isFresh())) {
  const began = new Date();
  await mkdir(cache, { recursive: true });
  await buildInitBundle();
  await utimes(initBundlePath(), began, began);
  await buildCliBundle(began);
}
