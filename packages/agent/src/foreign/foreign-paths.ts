import pLimit, { type LimitFunction } from 'p-limit';
import { abortable, DroverError } from '@drover/foundation';
import { runProgram, searchPath, type Finished } from '@drover/linux';
import { foreignMs, maxStuckPrograms } from '../limits.ts';

export interface ForeignStatus {
  readonly kind: 'directory' | 'file';
  readonly device: string;
  readonly inode: string;
  readonly uid: number;
  readonly gid: number;
  /** Permission bits. */
  readonly mode: number;
}

/** Unpacking an archive takes minutes, and filling a root over an image directory takes milliseconds: neither waits for the other. */
type PooledWork = 'archive' | 'root';

/**
 * Paths of the host outside the agent's own directory: directories that sandboxes mount, image directories and archives. They may be on a file
 * system that does not respond (NFS, FUSE). A call that touches it then hangs in the kernel, where not even SIGKILL ends it. In the agent it
 * would block the main thread, or one of the few threads of its pool, for good, so a program makes the call.
 */
export class ForeignPaths {
  /** The number of programs that hang, by the path that they touched. */
  readonly #stuck = new Map<string, number>();
  /** One task of each kind at a time: see `inPool`. */
  readonly #pools: Readonly<Record<PooledWork, LimitFunction>> = { archive: pLimit(1), root: pLimit(1) };

  /**
   * Looks a path up; links are followed. Undefined: it does not exist.
   * @throws {DroverError} unavailable when its file system does not respond
   */
  async status(path: string): Promise<ForeignStatus | undefined> {
    const { code, stdout, stderr } = await this.#touch(path, 'stat', ['-L', '-c', '%d %i %u %g %f', '--', path]);
    if (code !== 0) {
      if (/No such file|Not a directory|Too many levels/.test(stderr)) return undefined;
      throw new DroverError('runtime-failed', `${path} on the host cannot be used: ${stderr.trim()}`);
    }
    const [device = '', inode = '', uid, gid, bits = ''] = stdout.trim().split(' ');
    const mode = Number.parseInt(bits, 16);
    // inode(7): S_IFMT and S_IFDIR.
    const kind = (mode & 0o170000) === 0o040000 ? 'directory' : 'file';
    return { kind, device, inode, uid: Number(uid), gid: Number(gid), mode: mode & 0o7777 };
  }

  /** The beginning of a text file. Undefined: it does not exist. @throws {DroverError} unavailable, runtime-failed */
  async read(path: string, maxBytes: number): Promise<string | undefined> {
    const { code, stdout, stderr } = await this.#touch(path, 'head', ['-c', String(maxBytes), '--', path]);
    if (code === 0) return stdout;
    if (/No such file|Not a directory/.test(stderr)) return undefined;
    throw new DroverError('runtime-failed', `${path} on the host cannot be read: ${stderr.trim()}`);
  }

  /** Bind-mounts a path on `target`, in the agent's own directory. @throws {DroverError} unavailable, runtime-failed */
  async bind(path: string, target: string): Promise<void> {
    const { code, stderr } = await this.#touch(path, 'mount', ['--bind', '--', path, target]);
    if (code !== 0) throw new DroverError('runtime-failed', `${path} on the host cannot be mounted: ${stderr.trim()}`);
  }

  /**
   * Runs work that reads below a path in this process, such as unpacking an archive, once the path has responded. If it hangs all the same, it
   * occupies one thread of the pool, and no other work of its kind begins.
   * @param signal ends the wait for this and earlier work, which cannot be interrupted itself
   * @throws {DroverError} unavailable; the signal's reason
   */
  async inPool<T>(kind: PooledWork, path: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    await this.status(path);
    signal?.throwIfAborted();
    const result = this.#pools[kind](async () => {
      signal?.throwIfAborted();
      return await work();
    });
    return await (signal === undefined ? result : abortable(result, signal));
  }

  async #touch(path: string, program: string, args: readonly string[]): Promise<Finished> {
    // Another program would hang, too: retries must not add to them.
    if (this.#stuck.has(path)) throw unresponsive(path);
    if (this.#stuck.size >= maxStuckPrograms) throw tooMany([...this.#stuck.keys()]);
    const env = { ...process.env, PATH: searchPath(), LC_ALL: 'C' };
    const finished = await runProgram(program, args, { env, timeoutMs: foreignMs });
    if (finished.stuck !== undefined) {
      this.#stuck.set(path, (this.#stuck.get(path) ?? 0) + 1);
      void finished.stuck.then(() => {
        const left = (this.#stuck.get(path) ?? 1) - 1;
        if (left > 0) this.#stuck.set(path, left);
        else this.#stuck.delete(path);
      });
    }
    if (finished.code === null) throw unresponsive(path);
    return finished;
  }
}

function unresponsive(path: string): DroverError {
  return new DroverError('unavailable', `${path} on the host does not respond: the file system that it is on hangs`, {
    hint: `see on the host what it is mounted from (findmnt -T ${path}) and repair that; the sandbox starts when it responds`,
  });
}

function tooMany(paths: readonly string[]): DroverError {
  return new DroverError('unavailable', `${paths.length} paths on the host do not respond: ${paths.slice(0, 5).join(', ')}`, {
    hint: 'see on the host what they are mounted from (findmnt) and repair that',
  });
}
