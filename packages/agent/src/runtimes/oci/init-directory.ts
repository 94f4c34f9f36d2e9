import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { chmod, copyFile, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { isDeepStrictEqual, promisify } from 'node:util';
import { DroverError, errnoOf, writeFileAtomic } from '@drover/foundation';
import { z } from 'zod';
import { initLoaderName, loaderName } from './spec.ts';

const run = promisify(execFile);

export interface InitDirectoryOptions {
  /** The Node program to run init with; default: the one that runs this. */
  readonly nodePath: string;
  /** Becomes init.cjs. */
  readonly bundlePath: string;
  /** Becomes pty.node; without it, the `pty.node` beside the bundle when there is one: no terminals otherwise. */
  readonly addonPath?: string | undefined;
}

/**
 * Lays out what init needs in any image, also those without a C library (I-38): `node`, its loaders, `lib/*.so*`, `init.cjs`,
 * `pty.node`, and an empty `run` that each sandbox's run directory is mounted on. The directory is named for its content, made once
 * and whole (temporary name, then rename), and never changed: sandboxes of an earlier release keep theirs.
 *
 * @returns its path in `targetDirectory`
 * @throws {DroverError} missing-component, when a file or library is not there
 */
export async function prepareInitDirectory(targetDirectory: string, options: InitDirectoryOptions): Promise<string> {
  await mkdir(targetDirectory, { recursive: true });
  const files = await filesOf(options);
  const path = join(targetDirectory, `init-${await digestOf(files, join(targetDirectory, 'digests.json'))}`);
  if (await isDirectory(path)) return path;
  const temporary = join(targetDirectory, `.init-${randomBytes(6).toString('hex')}.tmp`);
  try {
    await mkdir(join(temporary, 'lib'), { recursive: true });
    await mkdir(join(temporary, 'run'), { mode: 0o700 });
    for (const [name, source] of files) {
      if (name === loaderName(process.arch) || name === initLoaderName(process.arch)) await copyLoader(source, join(temporary, name));
      else await copyFile(source, join(temporary, name));
      await chmod(join(temporary, name), modeOf(name));
    }
    // Whatever this process's umask is, every user of a sandbox may read it.
    for (const directory of [temporary, join(temporary, 'lib')]) await chmod(directory, 0o755);
    await rename(temporary, path).catch(async (error: unknown) => {
      // Another one was faster with the same content.
      if (!(await isDirectory(path))) throw error;
    });
    return path;
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/**
 * The loader that starts init can be executed and not read. The kernel holds what starts from such a file to be no open book: nobody in the
 * sandbox, its root included, may trace init or read its memory, environment and descriptors (I-6; ptrace(2), "dumpable"; would_dump in
 * fs/exec.c). It is the root's of the host, whom the sandbox's root cannot overrule.
 */
function modeOf(name: string): number {
  return name === initLoaderName(process.arch) ? 0o711 : 0o755;
}

/** Files below /etc that the loader acts on before anything of init runs, and as long ones that there are not in its place. */
const loaderFiles = [
  ['/etc/ld.so.preload', '/.drover/nopreload'],
  ['/etc/ld.so.cache', '/.drover/nocache'],
] as const;

/**
 * The loader with other paths in it: those files are the image's, and of the sandbox's root, and what they name would become a part of init
 * (I-6) or keep it from starting (I-38). glibc has no switch for the first.
 * @throws {DroverError} missing-component when it has none of them, and so is another loader than it was taken for
 */
async function copyLoader(source: string, target: string): Promise<void> {
  const loader = await readFile(source);
  for (const [path, instead] of loaderFiles) {
    const [from, to] = [Buffer.from(`${path}\0`), Buffer.from(`${instead}\0`)];
    let at = loader.indexOf(from);
    if (at < 0) throw new DroverError('missing-component', `${source} is no GNU loader that is known: it has no ${path}`);
    for (; at >= 0; at = loader.indexOf(from, at + to.length)) to.copy(loader, at);
  }
  await writeFile(target, loader);
}

/** Name in the init directory to source on the host, sorted by name. */
async function filesOf(options: InitDirectoryOptions): Promise<readonly (readonly [string, string])[]> {
  const loader = await loaderPath();
  const files = new Map<string, string>([
    ['node', options.nodePath],
    [loaderName(process.arch), loader],
    [initLoaderName(process.arch), loader],
    ['init.cjs', options.bundlePath],
  ]);
  const beside = (await readdir(dirname(options.bundlePath))).includes('pty.node');
  const addon = options.addonPath ?? (beside ? join(dirname(options.bundlePath), 'pty.node') : undefined);
  const programs = [options.nodePath];
  if (addon !== undefined) {
    files.set('pty.node', addon);
    programs.push(addon);
  }
  for (const program of programs) {
    for (const library of await librariesOf(loader, program)) {
      if (basename(library) !== loaderName(process.arch)) files.set(`lib/${basename(library)}`, library);
    }
  }
  return [...files].sort(([a], [b]) => (a < b ? -1 : 1));
}

/** Where the ABI says that the loader is; Debian's merged /usr and others have it behind links, or in their own multiarch place. */
async function loaderPath(): Promise<string> {
  const name = loaderName(process.arch);
  const places = ['/lib64', '/lib', `/lib/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`];
  for (const place of places) {
    try {
      await stat(join(place, name));
      return join(place, name);
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error;
    }
  }
  throw new DroverError('missing-component', `the GNU loader ${name} is not on this host`, {
    hint: 'run the agent on a distribution with glibc',
  });
}

/** What the loader itself would load: `--list` prints `name => path (address)` a line (ld.so(8)). */
async function librariesOf(loader: string, program: string): Promise<string[]> {
  let stdout: string;
  try {
    ({ stdout } = await run(loader, ['--list', program]));
  } catch (error) {
    throw new DroverError('missing-component', `the libraries of ${program} cannot be told: ${String(error)}`, { cause: error });
  }
  return stdout.split('\n').flatMap((line) => {
    const missing = /^\s*(\S+) => not found$/.exec(line)?.[1];
    if (missing !== undefined) throw new DroverError('missing-component', `${program} needs ${missing}, which is not on this host`);
    return /=> (\/\S+) \(0x/.exec(line)?.[1] ?? [];
  });
}

/** @param remembered keeps the digests of files by what tells their versions apart: else 140 MB are read at each start of the agent */
async function digestOf(files: readonly (readonly [string, string])[], remembered: string): Promise<string> {
  const before = await readDigests(remembered);
  const now: Record<string, string> = {};
  // Of what is made of the files as well: directories of earlier releases stay as they are.
  const hash = createHash('sha256').update('3\0');
  for (const [name, source] of files) {
    const { dev, ino, size, mtimeNs, ctimeNs } = await stat(source, { bigint: true });
    const version = [dev, ino, size, mtimeNs, ctimeNs].join(' ');
    const sha256 = before[version] ?? (await sha256Of(source));
    // One that has just been written may be written again without another time: the kernel's clock for files ticks.
    if (Date.now() - Number(ctimeNs / 1_000_000n) > 1000) now[version] = sha256;
    hash.update(`${name}\0${sha256}\0`);
  }
  if (!isDeepStrictEqual(now, before)) await writeFileAtomic(remembered, JSON.stringify(now), { mode: 0o600 });
  return hash.digest('hex').slice(0, 24);
}

/** Whatever is wrong with it, the files themselves have what it says. */
async function readDigests(path: string): Promise<Readonly<Record<string, string>>> {
  try {
    return z.record(z.string(), z.string().length(64)).parse(JSON.parse(await readFile(path, 'utf8')));
  } catch {
    return {};
  }
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 1024 * 1024 })) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

async function isDirectory(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
}
