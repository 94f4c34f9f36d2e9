import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { clip, DroverError, errnoOf, systemClock, type Clock, type Logger } from '@drover/foundation';
import { migrate, OpenDatabase } from '../database/index.ts';
import { IdempotencyStore } from './idempotency.ts';
import type { Store } from './store.ts';
import { tablesOf } from './tables.ts';

export interface StoreOptions {
  readonly logger: Logger;
  /** Default: the system clock. */
  readonly clock?: Clock;
}

/**
 * Opens the database, creates it if it does not exist, and migrates its schema.
 * @param url `sqlite:PATH` or a path (its directory is created, but not its parents), or `postgres://…`
 * @throws {DroverError} invalid-config for another scheme; unavailable when the database cannot be opened; failed-precondition when
 *   a newer version of Drover has changed it
 */
export async function openStore(url: string, options: StoreOptions): Promise<Store> {
  const { kind, location } = parseStoreUrl(url);
  const database = await open(kind, location, options);
  try {
    await migrate(database);
  } catch (error) {
    await database.close();
    throw DroverError.from(unreadable(kind, location, error));
  }
  return {
    kind,
    ...tablesOf(database),
    idempotency: new IdempotencyStore(database),
    together: async (work) => await database.together(async (within) => await work(tablesOf(within))),
    close: () => database.close(),
  };
}

async function open(kind: Store['kind'], location: string, options: StoreOptions): Promise<OpenDatabase> {
  try {
    if (kind === 'sqlite') await makeDirectory(dirname(location));
    return new OpenDatabase({
      kind,
      location,
      logger: options.logger,
      clock: options.clock ?? systemClock,
    });
  } catch (error) {
    throw unreadable(kind, location, error);
  }
}

/** Creates one level only: a missing parent probably means a mistyped path. */
async function makeDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { mode: 0o700 });
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw error;
  }
}

function parseStoreUrl(url: string): { readonly kind: Store['kind']; readonly location: string } {
  if (/^postgres(ql)?:\/\//.test(url)) return { kind: 'postgres', location: url };
  const path = url.startsWith('sqlite:') ? url.slice('sqlite:'.length) : url;
  if (path === '' || /^[a-z][a-z0-9+.-]*:\/\//.test(path)) {
    throw new DroverError('invalid-config', `${JSON.stringify(clip(url))} is not a store`, {
      hint: 'use a path, sqlite:PATH or postgres://USER@HOST/DATABASE',
    });
  }
  return { kind: 'sqlite', location: path };
}

/** The message names no URL, which may contain a password. */
function unreadable(kind: Store['kind'], location: string, error: unknown): DroverError {
  if (error instanceof DroverError) return error;
  const reason = error instanceof Error && error.message !== '' ? error.message : String(error);
  return kind === 'sqlite'
    ? new DroverError('unavailable', `the database ${location} cannot be opened: ${reason}`, {
        hint: 'check that the directory exists, is writable and has space, and that no other program has locked the file',
        cause: error,
      })
    : new DroverError('unavailable', `the PostgreSQL server cannot be used: ${reason}`, {
        hint: 'check that it runs, and that the address, user, password and database in --store are correct',
        cause: error,
      });
}
