/** Builds what runs as few files: init, which runs in every sandbox, and the program itself. */
import { createHash } from 'node:crypto';
import { chmod, glob, mkdir, mkdtemp, readdir, readFile, readlink, rename, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { builtinModules } from 'node:module';
import { basename, join, relative } from 'node:path';
import { build, type Plugin } from 'esbuild';
import { buildInitBundle, initBundlePath } from '../packages/init/src/bundle.ts';

const root = join(import.meta.dirname, '..');
const cache = join(root, '.cache');
/** How long a bundle stays after it was replaced, longer while a command that was started from it still runs. Milliseconds. */
const keepMs = 24 * 3_600_000;

/**
 * Node's own modules as CommonJS has them. As a module of the language each is read to its last property when it is loaded, and
 * `node:http` has one that loads an HTTP client and a WebSocket: 50 ms of every command.
 */
const builtins: Plugin = {
  name: 'builtins',
  setup(made) {
    const known = new Set(builtinModules);
    made.onResolve({ filter: /^(?:node:)?[a-z0-9_/]+$/ }, ({ path, kind, importer }) => {
      const name = path.replace(/^node:/, '');
      if (kind !== 'import-statement' || !(path.startsWith('node:') || known.has(name))) return undefined;
      // One for each importer stays in its file; one for all would be a file of its own, which costs a start a millisecond.
      return { path: name, suffix: `?${relative(root, importer)}`, namespace: 'builtin', sideEffects: false };
    });
    made.onLoad({ filter: /.*/, namespace: 'builtin' }, ({ path }) => ({
      contents: `module.exports = process.getBuiltinModule('node:${path}')`,
      loader: 'js',
    }));
  },
};

/** Init's own bundle is found beside its sources, wherever the code that looks for it is. */
const initPlace: Plugin = {
  name: 'init-place',
  setup(made) {
    const source = join(root, 'packages', 'init', 'src');
    made.onLoad({ filter: /\/packages\/init\/src\/bundle\.ts$/ }, async ({ path }) => ({
      contents: (await readFile(path, 'utf8')).replaceAll(
        'import.meta.dirname',
        // From the bundle's directory, so that a clone that is moved has not lost it.
        `(import.meta.dirname + ${JSON.stringify(`/${relative(join(cache, 'cli-'), source)}`)})`,
      ),
      loader: 'ts',
    }));
  },
};

/**
 * `.cache/cli/main.js`: the program in a few files, which start in half the time of some 300 sources. The launcher takes it as long as
 * nothing in the sources is newer. A link is replaced, so that a command that starts meanwhile finds the old files or the new ones,
 * and what it links to is named by its content and never changed: a command that runs loads parts of its own bundle later on.
 */
async function buildCliBundle(began: Date): Promise<void> {
  const { outputFiles } = await build({
    // Threads and programs of the agent's are started from their own files, beside.
    entryPoints: [
      'cli/src/main.ts',
      'agent/src/images/unpack/unpack-thread.ts',
      'linux/src/root-replacement-thread.ts',
      'agent/src/sandboxes/copy-ended-program.ts',
    ].map((path) => join(root, 'packages', path)),
    entryNames: '[name]',
    // Only for the names of the files.
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
    // Only what is published builds init's bundle.
    external: ['esbuild'],
    plugins: [builtins, initPlace],
    // As in init's bundle: without it each process loads all of fetch for the headers of gRPC.
    inject: [join(root, 'packages', 'init', 'src', 'server', 'headers.ts')],
    // Packages in CommonJS ask for Node's own modules with it.
    banner: { js: "import { createRequire as bundleRequire } from 'node:module'; const require = bundleRequire(import.meta.url);" },
  });
  const hash = createHash('sha256');
  for (const { path, contents } of outputFiles) hash.update(`${basename(path)} ${contents.length}\n`).update(contents);
  const directory = join(cache, `cli-${hash.digest('hex').slice(0, 16)}`);
  const made = await mkdtemp(join(cache, 'making-'));
  for (const { path, contents } of outputFiles) await writeFile(join(made, basename(path)), contents);
  // Whoever may read the sources may read it.
  await chmod(made, 0o755);
  await rename(made, directory).catch(async (error: NodeJS.ErrnoException) => {
    await rm(made, { recursive: true, force: true });
    // The same content was made before.
    if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
  });
  // What is touched while it is read counts as newer.
  await utimes(join(directory, 'main.js'), began, began);
  const former = await readlink(join(cache, 'cli')).catch(() => undefined);
  const link = `${made}.link`;
  await symlink(basename(directory), link);
  await rename(link, join(cache, 'cli'));
  // Its age counts from now on.
  if (former !== undefined) await utimes(join(cache, basename(former)), began, began).catch(() => undefined);
  await removeOld(cache, directory);
}

async function removeOld(cache: string, current: string): Promise<void> {
  for (const name of await readdir(cache)) {
    const path = join(cache, name);
    if (!/^(cli|making)-/.test(name) || path === current) continue;
    // Another `up` may be at it too: gone is gone.
    const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
    if (Date.now() - mtimeMs > keepMs && !(await isRunning(path))) await rm(path, { recursive: true, force: true });
  }
}

/** Whether a command that was started from that bundle still runs; the launcher gives it by its path without links. */
async function isRunning(directory: string): Promise<boolean> {
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const argv = await readFile(join('/proc', pid, 'cmdline'), 'utf8').catch(() => '');
    if (argv.includes(`${directory}/`)) return true;
  }
  return false;
}

/** The same question as the launcher's. */
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
  // What is touched while it is read counts as newer.
  await utimes(initBundlePath(), began, began);
  await buildCliBundle(began);
}
