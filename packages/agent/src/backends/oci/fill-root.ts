import { chmod, chown, lstat, mkdir, readlink, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { DroverError, errnoOf } from '@drover/foundation';

export interface FreshRoot {
  readonly hostname: string;
  /** The sandbox's own; empty without a network. */
  readonly address: string;
  /** The sandbox's root on the host. */
  readonly uid: number;
}

/**
 * Writes the files that every sandbox has beside its image into a new root: /etc with its names and without a name server, since the egress proxy
 * resolves names, and /tmp. Links of the image are followed inside the root. Only before the sandbox first runs: later, links change while they
 * are followed.
 */
export async function fillRoot(root: string, { hostname, address, uid }: FreshRoot): Promise<void> {
  const files: Record<string, string> = {
    hostname: `${hostname}\n`,
    hosts: `127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n${address === '' ? '127.0.1.1' : address}\t${hostname}\n`,
    'resolv.conf':
      '# There is no name server in here: the egress proxy resolves names (see the proxy variables).\noptions timeout:1 attempts:1\n',
  };
  const etc = await directoryIn(root, '/etc', 0o755, uid);
  for (const [name, content] of Object.entries(files)) {
    const path = join(etc, name);
    // A link to a service's file, such as systemd-resolved's, has no target here.
    await rm(path, { force: true, recursive: true });
    await writeFile(path, content, { mode: 0o644, flag: 'wx' });
    await chown(path, uid, uid);
  }
  await directoryIn(root, '/tmp', 0o1777, uid);
}

/** Source: path_resolution(7). */
const maxLinks = 40;

/**
 * Resolves `path` as the processes in `root` do, and makes the directory and its parents where they are absent.
 * @returns its path on the host, without links below `root`
 * @throws {DroverError} corrupt-image when it is not a directory
 */
async function directoryIn(root: string, path: string, mode: number, uid: number): Promise<string> {
  const waiting = path.split('/').filter((part) => part !== '');
  let current = root;
  let links = 0;
  for (let part = waiting.shift(); part !== undefined; part = waiting.shift()) {
    if (part === '.') continue;
    if (part === '..') {
      if (current !== root) current = dirname(current);
      continue;
    }
    const next = join(current, part);
    const status = await lstat(next).catch((error: unknown) => {
      if (errnoOf(error) === 'ENOENT') return undefined;
      throw error;
    });
    if (status?.isSymbolicLink() === true) {
      if (++links > maxLinks) throw notDirectory(path, 'a link that leads to itself');
      const target = await readlink(next);
      if (target.startsWith('/')) current = root;
      waiting.unshift(...target.split('/').filter((each) => each !== ''));
      continue;
    }
    if (status === undefined) {
      await mkdir(next);
      await chown(next, uid, uid);
      await chmod(next, waiting.length === 0 ? mode : 0o755);
    } else if (!status.isDirectory()) throw notDirectory(path, 'no directory');
    current = next;
  }
  return current;
}

function notDirectory(path: string, what: string): DroverError {
  return new DroverError('corrupt-image', `${path} of the image is ${what}`, { hint: `build the image with a directory at ${path}` });
}
