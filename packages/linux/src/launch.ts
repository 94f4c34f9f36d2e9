import { accessSync, closeSync, constants } from 'node:fs';
import { Socket } from 'node:net';
import { join } from 'node:path';
import { childExit, isAwaited } from './children.ts';
import { addressOf, cString, libcFunctions, systemError } from './libc.ts';
import { signalProcess } from './process-calls.ts';
import { searchPath } from './search-path.ts';

export interface LaunchOptions {
  /** The whole environment. Default: this process's, with the administrator's directories in its PATH. */
  readonly env?: NodeJS.ProcessEnv;
  /** The standard streams that are connected to this process; the others are /dev/null. */
  readonly streams?: readonly StandardStream[];
  /** Connects the program's descriptor 3 to a socket of this process. */
  readonly channel?: boolean;
}

type StandardStream = 'stdin' | 'stdout' | 'stderr';

/** A running program. No other process has this end of its streams: closed here, they end in the program. */
export interface Launched {
  readonly pid: number;
  readonly stdin: Socket | undefined;
  readonly stdout: Socket | undefined;
  readonly stderr: Socket | undefined;
  readonly channel: Socket | undefined;
  /** The exit code; null when a signal ended the program. There may be more to read from its streams. */
  readonly ended: Promise<number | null>;
  /** Sends SIGKILL, unless the program has ended. */
  kill(): void;
}

const libc = libcFunctions({
  posix_spawn: { arguments: ['buffer', 'buffer', 'buffer', 'buffer', 'buffer', 'buffer'], return: 'i32' },
  posix_spawn_file_actions_init: { arguments: ['buffer'], return: 'i32' },
  posix_spawn_file_actions_destroy: { arguments: ['buffer'], return: 'i32' },
  posix_spawn_file_actions_adddup2: { arguments: ['buffer', 'i32', 'i32'], return: 'i32' },
  posix_spawn_file_actions_addopen: { arguments: ['buffer', 'i32', 'buffer', 'i32', 'u32'], return: 'i32' },
  posix_spawnattr_init: { arguments: ['buffer'], return: 'i32' },
  posix_spawnattr_setflags: { arguments: ['buffer', 'i16'], return: 'i32' },
  posix_spawnattr_setsigmask: { arguments: ['buffer', 'buffer'], return: 'i32' },
  posix_spawnattr_setsigdefault: { arguments: ['buffer', 'buffer'], return: 'i32' },
  sigfillset: { arguments: ['buffer'], return: 'i32' },
  pipe2: { arguments: ['buffer', 'i32'], return: 'i32' },
  socketpair: { arguments: ['i32', 'i32', 'i32', 'buffer'], return: 'i32' },
});

/** Source: include/uapi/asm-generic/fcntl.h, include/linux/socket.h and net.h; spawn.h of glibc and musl. */
const O_RDWR = 2;
const O_CLOEXEC = 0o2000000;
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const POSIX_SPAWN_SETSIGDEF = 4;
const POSIX_SPAWN_SETSIGMASK = 8;
/** More than any C library has for one of its structures: posix_spawnattr_t, the largest, has 336 bytes in glibc. */
const structureBytes = 1024;
const devNull = cString('/dev/null');

/**
 * Starts a program, found in the PATH of its environment when its name has no slash. It outlives this process.
 *
 * posix_spawn(3) borrows this process's memory until the program begins. node:child_process forks instead, which stops everything in this
 * process for some 10 ms (docs/decisions/0006).
 * @throws {Error} with `code`, ENOENT when there is no such program
 */
export async function launch(program: string, args: readonly string[], options: LaunchOptions = {}): Promise<Launched> {
  const env = options.env ?? { ...process.env, PATH: searchPath() };
  const path = locate(program, env['PATH'] ?? '/usr/bin:/bin');
  const { pid, ends } = await Promise.try(() => spawn(path, args, { ...options, env }));
  const socket = (name: StandardStream | 'channel'): Socket | undefined => {
    const fd = ends.get(name);
    return fd === undefined ? undefined : new Socket({ fd, readable: name !== 'stdin', writable: name === 'stdin' || name === 'channel' });
  };
  return {
    pid,
    stdin: socket('stdin'),
    stdout: socket('stdout'),
    stderr: socket('stderr'),
    channel: socket('channel'),
    ended: childExit(pid).then(({ code, signal }) => (signal === 0 ? code : null)),
    kill: () => {
      if (isAwaited(pid)) signalProcess(pid, 'SIGKILL');
    },
  };
}

function locate(program: string, path: string): string {
  if (program.includes('/')) return program;
  for (const directory of path.split(':')) {
    const file = join(directory === '' ? '.' : directory, program);
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {
      // Not in this directory.
    }
  }
  throw Object.assign(new Error(`ENOENT: ${program} is in none of ${path}`), { code: 'ENOENT' });
}

interface Spawned {
  readonly pid: number;
  /** This process's ends of the program's streams. */
  readonly ends: ReadonlyMap<StandardStream | 'channel', number>;
}

function spawn(path: string, args: readonly string[], { env = {}, streams = [], channel = false }: LaunchOptions): Spawned {
  const calls = libc();
  const ends = new Map<StandardStream | 'channel', number>();
  const theirs: number[] = [];
  const actions = Buffer.alloc(structureBytes);
  calls.posix_spawn_file_actions_init(actions);
  const connect = (name: StandardStream | 'channel', target: number, [own, their]: readonly [number, number]): void => {
    ends.set(name, own);
    theirs.push(their);
    calls.posix_spawn_file_actions_adddup2(actions, their, target);
  };
  try {
    for (const [target, name] of (['stdin', 'stdout', 'stderr'] as const).entries()) {
      if (!streams.includes(name)) {
        calls.posix_spawn_file_actions_addopen(actions, target, devNull, O_RDWR, 0);
        continue;
      }
      const [reader, writer] = pair('pipe2', (both) => calls.pipe2(both, O_CLOEXEC));
      connect(name, target, name === 'stdin' ? [writer, reader] : [reader, writer]);
    }
    if (channel)
      connect(
        'channel',
        3,
        pair('socketpair', (both) => calls.socketpair(AF_UNIX, SOCK_STREAM | O_CLOEXEC, 0, both)),
      );
    const pid = Buffer.alloc(structureBytes);
    const variables = Object.entries(env).flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`]));
    const errno = calls.posix_spawn(pid, cString(path), actions, spawnAttributes(), stringArray([path, ...args]), stringArray(variables));
    if (errno !== 0) throw systemError('posix_spawn', path, errno);
    return { pid: pid.readInt32LE(), ends };
  } catch (error) {
    for (const fd of ends.values()) closeSync(fd);
    throw error;
  } finally {
    for (const fd of theirs) closeSync(fd);
    calls.posix_spawn_file_actions_destroy(actions);
  }
}

function pair(call: string, make: (ends: Buffer) => number): readonly [number, number] {
  const ends = Buffer.alloc(8);
  if (make(ends) !== 0) throw systemError(call, 'ends');
  return [ends.readInt32LE(0), ends.readInt32LE(4)];
}

let attributes: Buffer | undefined;

/** A program starts with no signal blocked or ignored, whatever this process does with signals. */
function spawnAttributes(): Buffer {
  if (attributes !== undefined) return attributes;
  const calls = libc();
  attributes = Buffer.alloc(structureBytes);
  const signals = Buffer.alloc(structureBytes);
  calls.posix_spawnattr_init(attributes);
  calls.posix_spawnattr_setsigmask(attributes, signals);
  calls.sigfillset(signals);
  calls.posix_spawnattr_setsigdefault(attributes, signals);
  calls.posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  return attributes;
}

/** A null-terminated array of C strings; array and strings are one piece of memory. */
function stringArray(list: readonly string[]): Buffer {
  const texts = list.map((text) => cString(text));
  const table = 8 * (texts.length + 1);
  const array = Buffer.alloc(table + texts.reduce((sum, { length }) => sum + length, 0));
  const start = addressOf(array);
  let offset = table;
  for (const [index, text] of texts.entries()) {
    array.writeBigUInt64LE(start + BigInt(offset), index * 8);
    text.copy(array, offset);
    offset += text.length;
  }
  return array;
}
