import { randomBytes } from 'node:crypto';
import { mkdirSync, statSync } from 'node:fs';
import { mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { DroverError, errnoOf, reasonOf, type ErrorCode } from './errors.ts';

/**
 * Makes a directory and its missing parents, as `mkdir -p` does. For paths that a person or a sandbox names: Node.js's `recursive` never
 * returns if the file system refuses new entries with ENOENT, as /proc does.
 * @throws the system's error
 */
export async function makeDirectories(path: string | Buffer, mode = 0o777): Promise<void> {
  try {
    await mkdir(path, mode);
  } catch (error) {
    if (await isDirectory(path)) return;
    const parent = typeof path === 'string' ? dirname(path) : Buffer.from(dirname(path.toString('latin1')), 'latin1');
    if (errnoOf(error) !== 'ENOENT' || (await isDirectory(parent))) throw error;
    await makeDirectories(parent, mode);
    await makeDirectories(path, mode);
  }
}

/** As makeDirectories, synchronously. */
export function makeDirectoriesSync(path: string, mode = 0o777): void {
  try {
    mkdirSync(path, mode);
  } catch (error) {
    const isDirectorySync = (one: string): boolean => statSync(one, { throwIfNoEntry: false })?.isDirectory() === true;
    if (isDirectorySync(path)) return;
    const parent = dirname(path);
    if (errnoOf(error) !== 'ENOENT' || isDirectorySync(parent)) throw error;
    makeDirectoriesSync(parent, mode);
    makeDirectoriesSync(path, mode);
  }
}

/**
 * Removes a tree that a sandbox has made, as `rm -rf` does. The kernel accepts paths of 4,096 bytes (PATH_MAX), and a program can nest
 * directories deeper by changing into each: Node.js's `recursive` fails on them with ENAMETOOLONG.
 * @throws the system's error
 */
export async function removeTree(path: string): Promise<void> {
  for (;;) {
    try {
      await rm(path, { recursive: true, force: true });
      return;
    } catch (error) {
      if (errnoOf(error) !== 'ENAMETOOLONG') throw error;
    }
    await raiseDeep(Buffer.from(path));
  }
}

/** A directory whose path below the tree's root has this many bytes is moved to the root: with a name added, it is still below PATH_MAX. */
const deepBytes = 2048;

/**
 * Moves directories that are far below a tree's root into the root, with their content. The failed removal may still be under way in other
 * directories, so an absent entry is not an error.
 */
async function raiseDeep(root: Buffer): Promise<void> {
  const directories = [root];
  for (let directory = directories.pop(); directory !== undefined; directory = directories.pop()) {
    const entries = await readdir(directory, { withFileTypes: true, encoding: 'buffer' }).catch(ignoreAbsent);
    for (const entry of entries ?? []) {
      if (!entry.isDirectory()) continue;
      const path = Buffer.concat([directory, Buffer.from('/'), entry.name]);
      if (path.length - root.length < deepBytes) directories.push(path);
      else await rename(path, Buffer.concat([root, Buffer.from(`/.raised-${randomBytes(12).toString('hex')}`)])).catch(ignoreAbsent);
    }
  }
}

function ignoreAbsent(error: unknown): undefined {
  if (errnoOf(error) !== 'ENOENT') throw error;
}

async function isDirectory(path: string | Buffer): Promise<boolean> {
  return await stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

/** Bytes of the file that tests a directory: a full disk refuses it. */
const probeBytes = 4096;

/**
 * Makes a directory that a person named, and checks that files can be written to it.
 * @param kind the purpose of the directory: `data directory`
 * @param flag the flag that names another one: `--data`
 * @throws {DroverError} missing-privilege, disk-full or invalid-argument, with the reason
 */
export async function prepareDirectory(path: string, kind: string, flag: string, mode = 0o700): Promise<void> {
  const problem = await makeDirectories(path, mode).then(async () => await directoryProblem(path), problemOf);
  if (problem === undefined) return;
  const { code, reason, cause } = problem;
  throw new DroverError(code, `the ${kind} ${path} cannot be used: ${reason}`, { hint: `choose another with ${flag}`, cause });
}

interface DirectoryProblem {
  readonly code: ErrorCode;
  /** A clause for a person. */
  readonly reason: string;
  readonly cause: unknown;
}

/** Why files cannot be written to a directory; undefined when they can. It writes a file and removes it. */
export async function directoryProblem(directory: string): Promise<DirectoryProblem | undefined> {
  const probe = join(directory, `.probe-${randomBytes(6).toString('hex')}`);
  try {
    const file = await open(probe, 'wx', 0o600);
    try {
      await file.writeFile(Buffer.alloc(probeBytes));
    } finally {
      await file.close();
      await rm(probe);
    }
    return undefined;
  } catch (error) {
    return problemOf(error);
  }
}

function problemOf(cause: unknown): DirectoryProblem {
  const [code, reason] = whyNot(cause);
  return { code, reason, cause };
}

function whyNot(error: unknown): readonly [ErrorCode, string] {
  switch (errnoOf(error)) {
    case 'EACCES':
    case 'EPERM':
      return ['missing-privilege', 'this user cannot write there'];
    case 'EROFS':
      return ['invalid-argument', 'its file system is read-only'];
    case 'ENOSPC':
    case 'EDQUOT':
      return ['disk-full', 'its file system is full'];
    case 'ENOENT':
      return ['invalid-argument', 'its file system takes no new files'];
    case 'EEXIST':
    case 'ENOTDIR':
      return ['invalid-argument', 'a part of the path is not a directory'];
    default:
      return ['invalid-argument', reasonOf(error)];
  }
}
