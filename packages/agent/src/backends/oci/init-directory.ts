import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { chmod, copyFile, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { isDeepStrictEqual, promisify } from 'node:util';
import { DroverError, errnoOf, writeFileAtomic } from '@drover/foundation';
import { z } from 'zod';
import { loaderName } from './spec.ts';

const run = promisify(execFile);

export interface InitDirectoryOptions {
  /** The Node program that runs init. */
  readonly nodePath: string;
  /** Becomes init.cjs. */
  readonly bundlePath: string;
  /** Becomes pty.node, without which there are no terminals. Default: `pty.node` beside the bundle, if it exists. */
  readonly addonPath?: string | undefined;
}

/**
 * Makes the directory that is mounted on /.drover, with everything that init needs in any image, also in images without a C library (I-38):
 * `node`, its loader, `lib/*.so*`, `init.cjs`, `pty.node`, and an empty `run` that each sandbox's run directory is mounted on. It is named
 * after a digest of its content, made once (temporary name, then rename) and never changed: sandboxes of an earlier release keep theirs.
 *
 * @returns its path in `targetDirectory`
 * @throws {DroverError} missing-component when a file or library is absent
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
    for (const [name, source] of files) await (name === loaderName(process.arch) ? copyLoader : copyFile)(source, join(temporary, name));
    // Whatever the umask of this process is.
    for (const name of ['', 'lib', ...files.keys()]) await chmod(join(temporary, name), modeOf(name));
    await rename(temporary, path).catch(async (error: unknown) => {
      // Another agent or call made it in the meantime.
      if (!(await isDirectory(path))) throw error;
    });
    return path;
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/**
 * Every user of a sandbox may read all of it but the loader, which they may only execute. The kernel lets no process of the sandbox, not even of
 * its root, trace a process that was started from an unreadable file, read its memory or environment, or list its descriptors (I-6; ptrace(2),
 * "dumpable"; would_dump in fs/exec.c). The file belongs to root of the host, whose mode the sandbox's root cannot overrule.
 */
function modeOf(name: string): number {
  return name === loaderName(process.arch) ? 0o711 : 0o755;
}

/**
 * Copies the loader without the name of its list of libraries to preload. That file belongs to the image and to root of the sandbox: a library
 * of theirs would become part of init (I-6), or keep it and its steps from starting (I-38). glibc has no switch for it
 * (docs/decisions/0009). access(2) of an empty name fails with ENOENT, as on a system without the file.
 * @throws {DroverError} missing-component when the loader is not one of glibc
 */
async function copyLoader(source: string, target: string): Promise<void> {
  const loader = await readFile(source);
  const name = Buffer.from('/etc/ld.so.preload\0');
  let at = loader.indexOf(name);
  if (at < 0) throw new DroverError('missing-component', `${source} is not a GNU loader: it does not name /etc/ld.so.preload`);
  for (; at >= 0; at = loader.indexOf(name, at)) loader.fill(0, at, at + name.length);
  await writeFile(target, loader);
}

/** Names in the init directory and their sources on the host, in alphabetical order. */
async function filesOf(options: InitDirectoryOptions): Promise<ReadonlyMap<string, string>> {
  const loader = await loaderPath();
  const files = new Map([
    ['node', options.nodePath],
    [loaderName(process.arch), loader],
    ['init.cjs', options.bundlePath],
  ]);
  const isBeside = (await readdir(dirname(options.bundlePath))).includes('pty.node');
  const addon = options.addonPath ?? (isBeside ? join(dirname(options.bundlePath), 'pty.node') : undefined);
  if (addon !== undefined) files.set('pty.node', addon);
  for (const program of [options.nodePath, ...(addon === undefined ? [] : [addon])]) {
    for (const library of await librariesOf(loader, program)) {
      if (basename(library) !== loaderName(process.arch)) files.set(`lib/${basename(library)}`, library);
    }
  }
  return new Map([...files].toSorted(([a], [b]) => (a < b ? -1 : 1)));
}

/** The loader's path by the ABI. Debian's merged /usr and other systems have links there, or the multiarch directory. */
async function loaderPath(): Promise<string> {
  const name = loaderName(process.arch);
  for (const directory of ['/lib64', '/lib', `/lib/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`]) {
    const path = join(directory, name);
    if (await stat(path).then(() => true, absent)) return path;
  }
  throw new DroverError('missing-component', `this host does not have the GNU loader ${name}`, {
    hint: 'run the agent on a distribution with glibc',
  });
}

/** The libraries that the loader would load: `--list` prints a line `name => path (address)` for each (ld.so(8)). */
async function librariesOf(loader: string, program: string): Promise<string[]> {
  let stdout: string;
  try {
    ({ stdout } = await run(loader, ['--list', program]));
  } catch (error) {
    throw new DroverError('missing-component', `the libraries of ${program} cannot be listed: ${String(error)}`, { cause: error });
  }
  return stdout.split('\n').flatMap((line) => {
    const missing = /^\s*(\S+) => not found$/.exec(line)?.[1];
    if (missing !== undefined) throw new DroverError('missing-component', `${program} needs ${missing}, which this host does not have`);
    return /=> (\/\S+) \(0x/.exec(line)?.[1] ?? [];
  });
}

/**
 * @param cache a file with digests of the sources by their inodes, sizes and times; without it every start of the agent would read 140 MB
 * @returns a digest of all names and contents
 */
async function digestOf(files: ReadonlyMap<string, string>, cache: string): Promise<string> {
  const known = await readDigests(cache);
  const current: Record<string, string> = {};
  // The number changes with the processing of the sources: directories of earlier releases stay as they are.
  const hash = createHash('sha256').update('4\0');
  for (const [name, source] of files) {
    const { dev, ino, size, mtimeNs, ctimeNs } = await stat(source, { bigint: true });
    const version = [dev, ino, size, mtimeNs, ctimeNs].join(' ');
    const sha256 = known[version] ?? (await sha256Of(source));
    // The times of files are as coarse as the kernel's tick: a file that was just written may be written again without another time.
    if (Date.now() - Number(ctimeNs / 1_000_000n) > 1000) current[version] = sha256;
    hash.update(`${name}\0${sha256}\0`);
  }
  if (!isDeepStrictEqual(current, known)) await writeFileAtomic(cache, JSON.stringify(current), { mode: 0o600 });
  return hash.digest('hex').slice(0, 24);
}

/** None when the cache is absent or damaged: the digests are then computed again. */
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
  return await stat(path).then((stats) => stats.isDirectory(), absent);
}

function absent(error: unknown): false {
  if (errnoOf(error) === 'ENOENT') return false;
  throw error;
}
