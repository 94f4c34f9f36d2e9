import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fromBinary } from '@bufbuild/protobuf';
import { DroverError, clip, errnoOf } from '@drover/foundation';
import { init } from '@drover/protocol';
import { pathBelow, placeError } from './files.ts';
import type { Surroundings } from './surroundings.ts';

/** git-config(1): `--get-all` of a key that is not set, or without a file to look into. */
const notSet = 1;

interface Outcome {
  readonly status: number;
  readonly stdout: string;
  /** Its last line, which is where git says what went wrong. */
  readonly complaint: string;
}

/** Step `git`: the user's global configuration, and clones; with the image's git. */
export function setUpGit(input: Uint8Array, surroundings: Surroundings): number {
  const step = fromBinary(init.GitStepSchema, input);
  for (const [key, value] of Object.entries(step.config)) configure(key, value, surroundings);
  for (const clone of step.clones) placeClone(clone, surroundings);
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

/** A clone appears in its place whole, with its ref checked out: one that was interrupted leaves nothing there. */
function placeClone({ url, path, ref }: init.GitCloneStep, { home, env }: Surroundings): void {
  const target = pathBelow(home, path);
  if (ref.startsWith('-')) throw new DroverError('invalid-argument', `${JSON.stringify(clip(ref))} cannot be a git ref`);
  const origin = git(env, 'config', '--null', '--file', join(target, '.git', 'config'), '--get', 'remote.origin.url');
  if (origin.status === 0 && origin.stdout === `${url}\0`) return;
  if (!isAbsentOrEmpty(target)) {
    throw new DroverError('failed-precondition', `${clip(target)} is there already, and no clone of ${shown(url)}`, {
      hint: 'choose another path for the clone, or remove what is there',
    });
  }
  make(dirname(target));
  // A fixed name: what a step that was killed has left goes with the next.
  const temporary = join(dirname(target), `.${basename(target)}.drover-clone`);
  try {
    rmSync(temporary, { recursive: true, force: true });
    const cloned = git(env, 'clone', '--quiet', '--', url, temporary);
    if (cloned.status !== 0) {
      throw new DroverError('runtime-failed', `${shown(url)} cannot be cloned: ${shown(cloned.complaint)}`, {
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

/** A branch, a tag, a commit; or what a clone does not bring along, such as `refs/pull/1/head`. */
function checkOut(repository: string, url: string, ref: string, env: NodeJS.ProcessEnv): void {
  const found = git(env, '-C', repository, 'checkout', '--quiet', ref, '--');
  if (found.status === 0) return;
  const fetched = git(env, '-C', repository, 'fetch', '--quiet', 'origin', ref);
  if (fetched.status === 0 && git(env, '-C', repository, 'checkout', '--quiet', '--detach', 'FETCH_HEAD').status === 0) return;
  throw new DroverError('failed-precondition', `${shown(url)} has no ${clip(ref)}: ${shown(found.complaint)}`, {
    hint: 'name a branch, a tag or a commit of it',
  });
}

/** @throws {DroverError} command-not-found when the image has none */
function git(env: NodeJS.ProcessEnv, ...args: readonly string[]): Outcome {
  const { status, stdout, stderr, error } = spawnSync('git', args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    encoding: 'utf8',
    // Nobody is there to be asked for a password.
    env: { ...env, GIT_TERMINAL_PROMPT: '0' },
  });
  if (errnoOf(error) === 'ENOENT') {
    throw new DroverError('command-not-found', 'the image has no git', {
      hint: 'use an image with git in it, or leave git out of the setup',
    });
  }
  if (error !== undefined) throw DroverError.from(error, 'runtime-failed');
  return { status: status ?? 128, stdout, complaint: clip(stderr.trimEnd().split('\n').at(-1) ?? '') };
}

function make(directory: string): void {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o755 });
  } catch (error) {
    throw placeError(directory, error);
  }
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

/** Without the password that an address may carry. */
function shown(text: string): string {
  return clip(text.replaceAll(/\/\/[^/@\s]*@/g, '//'));
}
