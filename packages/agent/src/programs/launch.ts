import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import { searchPath } from '../search-path.ts';
import { launchByNode } from './by-node.ts';
import type { Launched, Launcher, LaunchOptions } from './launcher.ts';
import { openPosixSpawn } from './posix-spawn.ts';

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
