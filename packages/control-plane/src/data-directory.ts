import { randomBytes } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { DroverError, errnoOf, newId, writeFileAtomic } from '@drover/foundation';

/** What node:tls takes as ticketKeys. */
const ticketKeyBytes = 48;

/** What the server keeps besides its store and its CA: who it is, and the ports that its hosts and clients know. */
export interface ServerState {
  /** Names this replica: the owner of the hosts' streams that it holds. */
  readonly replica: string;
  readonly apiPort: number;
  readonly linkPort: number;
}

/** The server's directory, held for one server alone. */
export class DataDirectory {
  readonly path: string;
  readonly #lock: DatabaseSync;

  private constructor(path: string, lock: DatabaseSync) {
    this.path = path;
    this.#lock = lock;
  }

  /**
   * Takes the directory, making it if need be.
   *
   * The lock is SQLite's on an empty database: the kernel lets it go when the process ends, however it ends, so that none is ever
   * stale, and it holds over container and network namespaces.
   * @throws {DroverError} failed-precondition when another server has it; missing-privilege, disk-full, …
   */
  static async open(path: string): Promise<DataDirectory> {
    await mkdir(path, { recursive: true, mode: 0o700 }).catch((error: unknown) => {
      if (errnoOf(error) === 'EEXIST' || errnoOf(error) === 'ENOTDIR') {
        throw new DroverError('invalid-config', `${path} is no directory`, { hint: 'name another one with --data', cause: error });
      }
      throw DroverError.from(error);
    });
    const pidPath = join(path, 'server.pid');
    let lock: DatabaseSync | undefined;
    try {
      lock = new DatabaseSync(join(path, 'lock.db'), { timeout: 0 });
      lock.exec('PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT;');
    } catch (error) {
      lock?.close();
      if (!(error instanceof Error) || !/locked|busy/i.test(error.message)) {
        throw new DroverError(
          'invalid-config',
          `the data directory ${path} cannot be used: ${error instanceof Error ? error.message : String(error)}`,
          {
            hint: 'see that it belongs to the user that runs the server and has space',
            cause: error,
          },
        );
      }
      const pid = await readFile(pidPath, 'utf8').catch(() => '');
      throw new DroverError(
        'failed-precondition',
        `another server${pid === '' ? '' : ` (process ${pid.trim()})`} uses the data directory ${path}`,
        {
          hint: 'stop it first, or name another directory with --data',
          cause: error,
        },
      );
    }
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
      const { replica, apiPort, linkPort } = JSON.parse(text) as Record<string, unknown>;
      if (typeof replica === 'string' && replica !== '' && isPortOrZero(apiPort) && isPortOrZero(linkPort)) {
        return { replica, apiPort, linkPort };
      }
    } catch {
      // Said below.
    }
    throw new DroverError('invalid-config', `${path} cannot be read`, { hint: 'move it away; the next start makes another one' });
  }

  async writeState(state: ServerState): Promise<void> {
    await writeFileAtomic(join(this.path, 'server.json'), `${JSON.stringify(state, undefined, 2)}\n`, 0o644);
  }

  /**
   * 48 random bytes, made at the first start: with them hosts resume their TLS sessions after a restart (L-12).
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
    this.#lock.close();
  }
}

function isPortOrZero(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= 65_535;
}
