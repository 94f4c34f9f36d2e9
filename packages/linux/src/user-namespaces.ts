import { once } from 'node:events';
import { openSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { DroverError } from '@drover/foundation';
import { launch } from './launch.ts';

/**
 * Makes a user namespace that maps ids from 0 on to `count` ids of the host from `first` on. unshare(1) makes it, this process, which has the
 * privilege, writes the mapping, and the namespace lasts for as long as its descriptor is open.
 * @returns the descriptor; the caller closes it
 * @throws {DroverError} runtime-failed
 */
export async function makeUserNamespace(first: number, count: number): Promise<number> {
  // The shell prints a line after unshare(2), and ends with its stdin, so with this process at the latest.
  const helper = await launch('unshare', ['--user', 'sh', '-c', 'echo; read -r _'], { streams: ['stdin', 'stdout'] });
  const { stdin, stdout } = helper;
  try {
    if (stdin === undefined || stdout === undefined) throw new DroverError('internal', 'unshare was started without its streams');
    const isReady = await Promise.race([once(stdout, 'data').then(() => true), helper.ended.then(() => false)]);
    if (!isReady) throw new DroverError('runtime-failed', 'this host cannot make user namespaces');
    for (const kind of ['uid', 'gid']) await writeFile(`/proc/${helper.pid}/${kind}_map`, `0 ${first} ${count}\n`);
    return openSync(`/proc/${helper.pid}/ns/user`, 'r');
  } finally {
    stdin?.destroy();
    await helper.ended;
    stdout?.destroy();
  }
}
