import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fromBinary } from '@bufbuild/protobuf';
import { DroverError, clip, errnoOf, makeDirectoriesSync } from '@drover/foundation';
import { init } from '@drover/protocol';
import { maxComplaintLength } from '../limits.ts';
import { pathBelow, placeError, type Surroundings } from './files.ts';

/** git-config(1): `--get-all` of a key that is not set, or without a file to look into. */
const notSet = 1;

interface Outcome {
  readonly status: number;
  readonly stdout: string;
  /** The reason for a failure, from the stderr of git and of the programs that it runs. */
  readonly complaint: string;
}

/** Step `git`: the user's global configuration, with the image's git. */
export function setUpGit(input: Uint8Array, surroundings: Surroundings): number {
  const { config } = fromBinary(init.GitStepSchema, input);
  for (const [key, value] of Object.entries(config)) configure(key, value, surroundings);
  return 0;
}

/** Step `clone`: repositories, with the image's git. */
export function cloneRepositories(input: Uint8Array, surroundings: Surroundings): number {
  for (const clone of fromBinary(init.CloneStepSchema, input).clones) placeClone(clone, surroundings);
  return 0;
}

function configure(key: string, value: string, { home, env }: Surroundings): void {
  const found = git(env, 'config', '--global', '--null', '--get-all', key);
  if (found.status === 0 && found.stdout === `${value}\0`) return;
  if (found.status > notSet) throw new DroverError('runtime-failed', `git's ${clip(key)} cannot be read: ${found.complaint}`);
  make(home);
  const written = git(env, 'config', '--global', '--replace-all', key, value);
  if (written.status !== 0) throw new DroverError('runtime-failed', `git's ${clip(key)} cannot be set: ${written.complaint}`);
}

/**
 * A clone appears in its place complete, with its ref checked out; an interrupted one leaves nothing there. An existing repository belongs to
 * the workload and stays untouched, whatever its remotes and files are by now.
 */
function placeClone({ url, path, ref }: init.GitClone, { home, env }: Surroundings): void {
  const target = pathBelow(home, path);
  if (ref.startsWith('-')) throw new DroverError('invalid-argument', `${JSON.stringify(clip(ref))} cannot be a git ref`);
  if (isRepository(target)) return;
  if (!isAbsentOrEmpty(target)) {
    throw new DroverError('failed-precondition', `${clip(target)} holds files already, and is not a git repository`, {
      hint: `choose another path for the clone of ${shown(url)}, or remove what is there`,
    });
  }
  make(dirname(target));
  // A fixed name: the next run removes the directory that a killed step has left.
  const temporary = join(dirname(target), `.${basename(target)}.drover-clone`);
  try {
    rmSync(temporary, { recursive: true, force: true });
    const cloned = git(env, 'clone', '--quiet', '--', url, temporary);
    if (cloned.status !== 0) {
      throw new DroverError('runtime-failed', `${shown(url)} cannot be cloned: ${cloned.complaint}`, {
        hint: "check the address, that the sandbox's policy lets it out, and that it may read the repository",
      });
    }
    if (ref !== '') checkOut(temporary, url, ref, env);
    renameSync(temporary, target);
  } catch (error) {
    throw error instanceof DroverError ? error : placeError(target, error);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

/** Checks out a branch, a tag, a commit, or a ref that a clone does not fetch, such as `refs/pull/1/head`. */
function checkOut(repository: string, url: string, ref: string, env: NodeJS.ProcessEnv): void {
  const found = git(env, '-C', repository, 'checkout', '--quiet', ref, '--');
  if (found.status === 0) return;
  const fetched = git(env, '-C', repository, 'fetch', '--quiet', 'origin', ref);
  if (fetched.status === 0 && git(env, '-C', repository, 'checkout', '--quiet', '--detach', 'FETCH_HEAD').status === 0) return;
  throw new DroverError('failed-precondition', `${shown(url)} has no ${clip(ref)}: ${found.complaint}`, {
    hint: 'name a branch, a tag or a commit of it',
  });
}

/** @throws {DroverError} command-not-found when the image has none */
function git(env: NodeJS.ProcessEnv, ...args: readonly string[]): Outcome {
  const { status, stdout, stderr, error } = spawnSync('git', args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    encoding: 'utf8',
    // No person can enter a password.
    env: { ...env, GIT_TERMINAL_PROMPT: '0' },
  });
  if (errnoOf(error) === 'ENOENT') {
    throw new DroverError('command-not-found', 'the image has no git', {
      hint: 'use an image with git in it, or leave git out of the setup',
    });
  }
  if (error !== undefined) throw DroverError.from(error, 'runtime-failed');
  return { status: status ?? 128, stdout, complaint: complaintOf(stderr) };
}

/** Lines of git that do not name the error: hints, progress, and the advice on access that ends every failed fetch. */
const advice = /^(?:hint:|warning:|Cloning into |Please make sure you have the correct access rights$|and the repository exists\.$)/;

/** One line: everything up to git's last `fatal:` or `error:`. The output of ssh and of the remote precedes that. */
export function complaintOf(stderr: string): string {
  const lines = stderr
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !advice.test(line));
  const last = lines.findLastIndex((line) => /^(?:fatal|error): /.test(line));
  return clip(withoutPasswords(lines.slice(0, last < 0 ? lines.length : last + 1).join('; ')), maxComplaintLength);
}

function make(directory: string): void {
  try {
    makeDirectoriesSync(directory, 0o755);
  } catch (error) {
    throw placeError(directory, error);
  }
}

/** A `.git` of any kind: a directory, or the file of a worktree or a submodule. */
function isRepository(path: string): boolean {
  return existsSync(join(path, '.git'));
}

function isAbsentOrEmpty(path: string): boolean {
  try {
    return readdirSync(path).length === 0;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return true;
    if (errnoOf(error) === 'ENOTDIR') return false;
    throw placeError(path, error);
  }
}

function shown(url: string): string {
  return clip(withoutPasswords(url));
}

/** Addresses may carry user names and passwords. */
function withoutPasswords(text: string): string {
  return text.replaceAll(/\/\/[^/@\s]*@/g, '//');
}
