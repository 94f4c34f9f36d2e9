import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, hasCode, lockDirectory, makeDirectories, newId, writeFileAtomic } from '@drover/foundation';
import type { Store } from '../store/index.ts';

/** The length that node:tls requires of ticketKeys. */
const ticketKeyBytes = 48;

/** The server's state outside its store and its CA: its name, and the ports that its hosts and clients know. */
export interface ServerState {
  /** The name of this replica, the owner of the hosts' streams that it holds. */
  readonly replica: string;
  readonly apiPort: number;
  readonly linkPort: number;
  /** The kind of the store at the last start; undefined at the first start, and after older servers, which did not record it. */
  readonly store?: Store['kind'];
}

/** The server's directory, locked for one server. */
export class DataDirectory {
  readonly path: string;
  readonly #lock: Disposable;

  private constructor(path: string, lock: Disposable) {
    this.path = path;
    this.#lock = lock;
  }

  /**
   * Locks the directory, and creates it if necessary.
   * @throws {DroverError} failed-precondition when another server holds it; missing-privilege, disk-full, …
   */
  static async open(path: string): Promise<DataDirectory> {
    await makeDirectories(path, 0o700).catch((error: unknown) => {
      if (errnoOf(error) === 'EEXIST' || errnoOf(error) === 'ENOTDIR') {
        throw new DroverError('invalid-config', `${path} is not a directory`, { hint: 'name another one with --data', cause: error });
      }
      throw DroverError.from(error);
    });
    const pidPath = join(path, 'server.pid');
    const lock = await lockFor(path, pidPath);
    await writeFileAtomic(pidPath, `${process.pid}\n`, 0o644);
    return new DataDirectory(path, lock);
  }

  /** @throws {DroverError} invalid-config when the file cannot be read */
  async readState(): Promise<ServerState> {
    const path = join(this.path, 'server.json');
    let text: string;
    try {
      text = await readFile(path, 'utf8');
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw DroverError.from(error);
      return { replica: newId('cp'), apiPort: 0, linkPort: 0 };
    }
    try {
      const { replica, apiPort, linkPort, store } = JSON.parse(text) as Record<string, unknown>;
      if (typeof replica === 'string' && replica !== '' && isPortOrZero(apiPort) && isPortOrZero(linkPort)) {
        return { replica, apiPort, linkPort, ...((store === 'sqlite' || store === 'postgres') && { store }) };
      }
    } catch {
      // The error below reports it.
    }
    throw new DroverError('invalid-config', `${path} cannot be read`, { hint: 'move it away; the next start makes another one' });
  }

  async writeState(state: ServerState): Promise<void> {
    await writeFileAtomic(join(this.path, 'server.json'), `${JSON.stringify(state, undefined, 2)}\n`, 0o644);
  }

  /**
   * 48 random bytes, created at the first start: with them hosts resume their TLS sessions after a restart (L-12).
   * @throws {DroverError} invalid-config when the file holds anything else (I-28)
   */
  async ticketKeys(): Promise<Buffer> {
    const path = join(this.path, 'ticket-keys');
    let keys: Buffer;
    try {
      keys = await readFile(path);
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw DroverError.from(error);
      keys = randomBytes(ticketKeyBytes);
      await writeFileAtomic(path, keys, 0o600);
    }
    if (keys.byteLength === ticketKeyBytes) return keys;
    throw new DroverError('invalid-config', `${path} holds no TLS ticket keys`, { hint: 'move it away; the next start makes others' });
  }

  close(): void {
    this.#lock[Symbol.dispose]();
  }
}

/** The lock shows that another process holds the directory; the file beside it names the process. */
async function lockFor(path: string, pidPath: string): Promise<Disposable> {
  try {
    return lockDirectory(path, 'control plane');
  } catch (error) {
    if (!hasCode(error, 'failed-precondition')) throw error;
    const pid = (await readFile(pidPath, 'utf8').catch(() => '')).trim();
    throw new DroverError('failed-precondition', `another server${pid === '' ? '' : ` (process ${pid})`} uses the data directory ${path}`, {
      hint: 'stop it first, or name another directory with --data',
      cause: error,
    });
  }
}

function isPortOrZero(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= 65_535;
}
