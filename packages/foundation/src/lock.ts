import { randomBytes } from 'node:crypto';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { DroverError } from './errors.ts';

/**
 * Locks a directory for this process, until the lock is released or the process ends in any way.
 *
 * The lock is SQLite's on an empty database, `lock.db`: the kernel releases it with the process, so that it is never stale, and it works across
 * container and network namespaces.
 * @param what the kind of process, for the message: `control plane`
 * @throws {DroverError} failed-precondition when another process holds it; invalid-config when the directory cannot be used
 */
export function lockDirectory(directory: string, what: string): Disposable {
  let database: DatabaseSync | undefined;
  try {
    database = new DatabaseSync(join(directory, 'lock.db'), { timeout: 0 });
    // In exclusive mode the lock of one write is kept until the database is closed (SQLite, PRAGMA locking_mode).
    database.exec('PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT;');
  } catch (error) {
    database?.close();
    if (error instanceof Error && /locked|busy/i.test(error.message)) {
      // SQLite reports a file system without locks (ENOLCK) as a lock that another process holds.
      if (!hasLocks(directory)) {
        throw new DroverError('invalid-config', `the directory ${directory} cannot be used: its file system has no locks`, {
          hint: 'choose one on a local disk',
          cause: error,
        });
      }
      throw new DroverError('failed-precondition', `a ${what} is already running on ${directory}`, {
        hint: 'stop it first, or use another directory for this one',
        cause: error,
      });
    }
    throw new DroverError(
      'invalid-config',
      `the directory ${directory} cannot be used: ${error instanceof Error ? error.message : String(error)}`,
      {
        hint: 'check that it exists, belongs to the user of this process, and has space',
        cause: error,
      },
    );
  }
  const held = database;
  return { [Symbol.dispose]: () => held.close() };
}

/** Whether a new file, which no other process knows, can be locked. */
function hasLocks(directory: string): boolean {
  const path = join(directory, `.lock-${randomBytes(6).toString('hex')}.db`);
  let database: DatabaseSync | undefined;
  try {
    database = new DatabaseSync(path, { timeout: 0 });
    database.exec('BEGIN EXCLUSIVE; COMMIT;');
    return true;
  } catch {
    return false;
  } finally {
    database?.close();
    rmSync(path, { force: true });
  }
}
