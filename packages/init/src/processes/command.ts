import { accessSync, constants, statSync } from 'node:fs';
import { isAbsolute, join, resolve } from 'node:path';
import { clip, DroverError, makeDirectoriesSync, reasonOf } from '@drover/foundation';
import { lookUpUser, type User } from './users.ts';

export const defaultPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** A request to run a command. */
export interface CommandRequest {
  readonly argv: readonly string[];
  /** `NAME=value`; later entries win. */
  readonly env: readonly string[];
  readonly workdir: string;
  readonly user: string;
  readonly terminal: boolean;
  /** Creates a missing working directory, as for the main process. */
  readonly makeWorkdir: boolean;
}

/** A command in the form that the kernel takes. */
export interface Command {
  readonly file: string;
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly workdir: string;
  readonly user: User;
}

/** Resolves user, environment, directory and program in this sandbox. @throws {DroverError} invalid-argument, path-not-found, command-not-found, command-not-executable */
export function resolveCommand(request: CommandRequest): Command {
  const name = request.argv[0];
  if (name === undefined || name === '')
    throw new DroverError('invalid-argument', 'there is no command to run', { hint: 'name one after --' });
  if ([...request.argv, ...request.env].some((text) => text.includes('\0'))) {
    throw new DroverError('invalid-argument', 'arguments and environment cannot hold NUL bytes');
  }
  const user = lookUpUser(request.user);
  const env = environment(request, user);
  const workdir = resolve('/', request.workdir);
  enterable(workdir, request.makeWorkdir);
  return { file: findProgram(name, env['PATH'] ?? defaultPath, workdir), argv: request.argv, env, workdir, user };
}

function environment(request: CommandRequest, user: User): Record<string, string> {
  const env: Record<string, string> = { PATH: defaultPath, HOME: user.home };
  if (request.terminal) env['TERM'] = 'xterm-256color';
  for (const entry of request.env) {
    const at = entry.indexOf('=');
    if (at > 0) env[entry.slice(0, at)] = entry.slice(at + 1);
  }
  return env;
}

function enterable(workdir: string, make: boolean): void {
  try {
    if (make) makeDirectoriesSync(workdir);
    if (statSync(workdir).isDirectory()) return;
  } catch (error) {
    throw new DroverError('path-not-found', `the working directory ${clip(workdir)} cannot be used: ${reasonOf(error)}`, {
      hint: 'choose another with --workdir',
      cause: error,
    });
  }
  throw new DroverError('path-not-found', `the working directory ${clip(workdir)} is not a directory`, {
    hint: 'choose another with --workdir',
  });
}

/** As execvp(3): a name with a slash is a path; any other is searched for in PATH. */
function findProgram(name: string, path: string, workdir: string): string {
  const candidates = name.includes('/')
    ? [isAbsolute(name) ? name : join(workdir, name)]
    : path.split(':').map((directory) => join(directory === '' ? workdir : resolve(workdir, directory), name));
  let found: string | undefined;
  for (const candidate of candidates) {
    try {
      if (!statSync(candidate).isFile()) {
        if (name.includes('/')) found = candidate;
        continue;
      }
      found = candidate;
      accessSync(candidate, constants.X_OK);
      return candidate;
    } catch {
      // The next directory may have it. A file that is not executable is reported if no other is found.
    }
  }
  throw found === undefined ? commandNotFound(name) : notExecutable(name, 'permission denied');
}

export function commandNotFound(name: string): DroverError {
  return new DroverError('command-not-found', `${clip(name)}: command not found in the sandbox`, {
    hint: 'check the spelling, and that the image has it',
  });
}

export function notExecutable(name: string, why: string): DroverError {
  return new DroverError('command-not-executable', `${clip(name)}: cannot be executed in the sandbox (${why})`, {
    hint: 'check its mode, its format and the interpreter that it names',
  });
}
