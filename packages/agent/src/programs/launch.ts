import { accessSync, constants } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { searchPath } from '../search-path.ts';
import { launchByNode } from './by-node.ts';
import { openPosixSpawn } from './posix-spawn.ts';

export interface LaunchOptions {
  /** The whole environment. Default: this process's, with the administrator's directories in its PATH. */
  readonly env?: Readonly<Record<string, string>>;
  /** Which of its standard streams lead here; the others are /dev/null. */
  readonly streams?: readonly ('stdin' | 'stdout' | 'stderr')[];
  /** Its descriptor 3 is the other end of a socket. */
  readonly channel?: boolean;
}

/** A program of the system's that runs. Its streams are of it alone: closed here, they are at their end there. */
export interface Launched {
  readonly pid: number;
  readonly stdin: Socket | undefined;
  readonly stdout: Socket | undefined;
  readonly stderr: Socket | undefined;
  readonly channel: Socket | undefined;
  /** Its exit code; null when a signal ended it. Its streams may have more to be read. */
  readonly ended: Promise<number | null>;
  /** SIGKILL; ended: nothing. */
  kill(): void;
}

/** A path, arguments without the program's own name, an environment: a way to start it. */
export type Launcher = (
  path: string,
  args: readonly string[],
  options: Omit<LaunchOptions, 'env'> & { readonly env: NodeJS.ProcessEnv },
) => Promise<Launched>;

let chosen: Launcher | undefined;

/**
 * Starts a program, found in the PATH of its environment when it has no slash. It lives on when this process ends.
 * @throws {Error} with `code`, ENOENT when there is none
 */
export async function launch(program: string, args: readonly string[], options: LaunchOptions = {}): Promise<Launched> {
  chosen ??= openPosixSpawn() ?? launchByNode;
  const env = options.env ?? { ...process.env, PATH: searchPath() };
  return await chosen(locate(program, env['PATH'] ?? '/usr/bin:/bin'), args, { ...options, env });
}

function locate(program: string, path: string): string {
  if (program.includes('/')) return program;
  for (const directory of path.split(':')) {
    const file = join(directory === '' ? '.' : directory, program);
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {
      // Not there: the next one.
    }
  }
  throw Object.assign(new Error(`ENOENT: ${program} is in none of ${path}`), { code: 'ENOENT' });
}
