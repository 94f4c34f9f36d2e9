import { closeSync } from 'node:fs';
import { Socket } from 'node:net';
import { getSystemErrorName } from 'node:util';
import { openFfi } from '@drover/archive';
import { programLookMs } from '../limits.ts';
import type { Launcher } from './launcher.ts';

// Source: Linux, include/uapi/asm-generic/fcntl.h, linux/socket.h, linux/net.h, linux/wait.h; glibc and musl, spawn.h.
const O_RDWR = 2;
const O_CLOEXEC = 0o2000000;
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const WNOHANG = 1;
const POSIX_SPAWN_SETSIGDEF = 4;
const POSIX_SPAWN_SETSIGMASK = 8;
/** More than any C library takes for one of its structures: posix_spawnattr_t, the largest, has 336 bytes in glibc. */
const structureBytes = 1024;

/**
 * Through posix_spawn(3), which borrows this process's memory until the program begins. node:child_process forks instead: with an agent's
 * heap that takes some 10 ms of CPU time, in which nothing else happens in here.
 * @returns undefined where this Node has no FFI, or its C library lacks a symbol
 */
export function openPosixSpawn(): Launcher | undefined {
  const libc = openLibc();
  if (libc === undefined) return undefined;
  const children = new Children(libc.waitpid);
  const attributes = Buffer.alloc(structureBytes);
  const signals = Buffer.alloc(structureBytes);
  // What this process ignores or blocks is nothing for its programs.
  libc.posix_spawnattr_init(attributes);
  libc.posix_spawnattr_setsigmask(attributes, signals);
  libc.sigfillset(signals);
  libc.posix_spawnattr_setsigdefault(attributes, signals);
  libc.posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);

  const pair = (make: (ends: Buffer) => number): readonly [number, number] => {
    const ends = Buffer.alloc(structureBytes);
    const failed = make(ends);
    if (failed !== 0) throw systemError('pipe', libc.errno());
    return [ends.readInt32LE(0), ends.readInt32LE(4)];
  };

  return (path, args, { env, streams = [], channel = false }) =>
    Promise.try(() => {
      const ours: number[] = [];
      const theirs: number[] = [];
      const actions = Buffer.alloc(structureBytes);
      const opened: Partial<Record<'stdin' | 'stdout' | 'stderr' | 'channel', number>> = {};
      libc.posix_spawn_file_actions_init(actions);
      try {
        const lead = (name: keyof typeof opened, target: number, [own, its]: readonly [number, number]): void => {
          ours.push((opened[name] = own));
          theirs.push(its);
          libc.posix_spawn_file_actions_adddup2(actions, its, target);
        };
        for (const [target, name] of (['stdin', 'stdout', 'stderr'] as const).entries()) {
          if (!streams.includes(name)) {
            libc.posix_spawn_file_actions_addopen(actions, target, devNull, O_RDWR, 0);
            continue;
          }
          const [reader, writer] = pair((ends) => libc.pipe2(ends, O_CLOEXEC));
          lead(name, target, name === 'stdin' ? [writer, reader] : [reader, writer]);
        }
        if (channel)
          lead(
            'channel',
            3,
            pair((ends) => libc.socketpair(AF_UNIX, SOCK_STREAM | O_CLOEXEC, 0, ends)),
          );
        const pid = Buffer.alloc(structureBytes);
        const argv = libc.strings([path, ...args]);
        const envp = libc.strings(Object.entries(env).flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`])));
        const errno = libc.posix_spawn(pid, Buffer.from(`${path}\0`), actions, attributes, argv, envp);
        if (errno !== 0) throw systemError(`spawn ${path}`, errno);
        return { pid: pid.readInt32LE(), opened };
      } catch (error) {
        for (const fd of ours) closeSync(fd);
        throw error;
      } finally {
        for (const fd of theirs) closeSync(fd);
        libc.posix_spawn_file_actions_destroy(actions);
      }
    }).then(({ pid, opened }) => {
      const socket = (fd: number | undefined, ways: { readable: boolean; writable: boolean }): Socket | undefined =>
        fd === undefined ? undefined : new Socket({ fd, ...ways });
      return {
        pid,
        stdin: socket(opened.stdin, { readable: false, writable: true }),
        stdout: socket(opened.stdout, { readable: true, writable: false }),
        stderr: socket(opened.stderr, { readable: true, writable: false }),
        channel: socket(opened.channel, { readable: true, writable: true }),
        ended: children.ended(pid),
        kill: () => children.kill(pid),
      };
    });
}

const devNull = Buffer.from('/dev/null\0');

/** Programs that were started and not yet waited for. Until then a pid is nobody else's. */
class Children {
  readonly #waitpid: (pid: number, status: Buffer, options: number) => number;
  readonly #running = new Map<number, (code: number | null) => void>();
  readonly #status = Buffer.alloc(structureBytes);
  readonly #look = (): void => this.#lookAtAll();
  #timer: NodeJS.Timeout | undefined;

  constructor(waitpid: (pid: number, status: Buffer, options: number) => number) {
    this.#waitpid = waitpid;
  }

  ended(pid: number): Promise<number | null> {
    const { promise, resolve } = Promise.withResolvers<number | null>();
    this.#running.set(pid, resolve);
    if (this.#timer === undefined) {
      process.on('SIGCHLD', this.#look);
      // The signal says when to look; a thread that gets none looks by itself. It also keeps this process from ending meanwhile.
      this.#timer = setInterval(this.#look, programLookMs);
    }
    // It may have ended before anybody listened for the signal.
    setImmediate(this.#look);
    return promise;
  }

  kill(pid: number): void {
    if (this.#running.has(pid)) process.kill(pid, 'SIGKILL');
  }

  #lookAtAll(): void {
    for (const [pid, resolve] of this.#running) {
      // Node's own children are waited for by their pids too; these are left to this look alone.
      const waited = this.#waitpid(pid, this.#status, WNOHANG);
      if (waited === 0) continue;
      this.#running.delete(pid);
      const status = this.#status.readInt32LE();
      // WIFEXITED and WEXITSTATUS. Not its parent any more (-1) cannot be; then there is no code to tell.
      resolve(waited === pid && (status & 0x7f) === 0 ? (status >> 8) & 0xff : null);
    }
    if (this.#running.size > 0 || this.#timer === undefined) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    process.off('SIGCHLD', this.#look);
  }
}

function systemError(call: string, errno: number): Error {
  const code = getSystemErrorName(-errno);
  return Object.assign(new Error(`${code}: ${call}`), { code, errno: -errno, syscall: call });
}

function openLibc() {
  const ffi = openFfi();
  if (ffi === undefined) return undefined;
  try {
    const { functions } = ffi.dlopen(null, {
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
      waitpid: { arguments: ['i32', 'buffer', 'i32'], return: 'i32' },
      __errno_location: { arguments: [], return: 'pointer' },
    });
    return {
      ...functions,
      errno: () => ffi.getInt32(functions.__errno_location()),
      /** A null-terminated array of C strings, array and strings in one piece of memory. */
      strings: (list: readonly string[]): Buffer => {
        const texts = list.map((text) => Buffer.from(`${text}\0`));
        const table = 8 * (texts.length + 1);
        const all = Buffer.concat(
          [Buffer.alloc(table), ...texts],
          Math.max(structureBytes, table + texts.reduce((sum, { length }) => sum + length, 0)),
        );
        const start = ffi.getRawPointer(all);
        let offset = table;
        for (const [index, { length }] of texts.entries()) {
          all.writeBigUInt64LE(start + BigInt(offset), index * 8);
          offset += length;
        }
        return all;
      },
    };
  } catch {
    return undefined;
  }
}
