import { closeSync, readSync, writeSync } from 'node:fs';
import { createRequire } from 'node:module';
import { Socket } from 'node:net';
import { Writable } from 'node:stream';
import { ReadStream } from 'node:tty';
import { getSystemErrorMap } from 'node:util';
import { DroverError, errnoOf } from '@drover/foundation';
import { closeOnExec, makePipe, withFileOwner, type Pipe } from '@drover/linux';
import { execMs, maxExecFailureBytes, maxTerminalRetryMs, terminalRetryMs } from '../limits.ts';
import { endedBy, exited as exitedWith, terminalChildren } from './children.ts';
import type { Command } from './command.ts';
import { withGroups } from './groups.ts';
import { killGroup, type RawExit, type Spawned } from './spawned.ts';

/** The native part of @lydell/node-pty 1.1.0. It is used directly, since the JavaScript part has no backpressure for stdin. */
interface PtyAddon {
  fork(
    file: string,
    args: readonly string[],
    env: readonly string[],
    workdir: string,
    columns: number,
    rows: number,
    uid: number,
    gid: number,
    utf8: boolean,
    helper: string,
    onExit: (code: number, signal: number) => void,
  ): { readonly fd: number; readonly pid: number };
  resize(fd: number, columns: number, rows: number): void;
}

let loaded: PtyAddon | undefined;

/** Loaded for the first terminal: most sandboxes have none. */
function addon(): PtyAddon {
  if (loaded !== undefined) return loaded;
  const path = process.env['DROVER_PTY_ADDON'] ?? '/.drover/pty.node';
  try {
    loaded = createRequire(path)(path) as PtyAddon;
  } catch (error) {
    throw new DroverError('missing-component', 'terminals are not available in this sandbox: the terminal addon could not be loaded', {
      cause: error,
    });
  }
  return loaded;
}

/**
 * The input of a terminal. Neither Node.js nor libuv can wait until a terminal takes more: they would write in a busy loop on the only thread.
 * This stream writes without blocking and retries after a wait, so that a program that does not read delays its writer alone.
 */
class TerminalInput extends Writable {
  readonly #terminal: ReadStream;
  readonly #fd: number;
  #retry: NodeJS.Timeout | undefined;

  /** @param terminal the owner of `fd` */
  constructor(terminal: ReadStream, fd: number) {
    super();
    this.#terminal = terminal;
    this.#fd = fd;
    // The descriptor is closed by then, and its number may be reused.
    terminal.once('close', () => this.destroy());
  }

  override _write(data: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.#write(data, terminalRetryMs, done);
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    clearTimeout(this.#retry);
    done(error);
  }

  #write(data: Buffer, waitMs: number, done: () => void): void {
    if (this.destroyed || this.#terminal.destroyed) return done();
    let written = 0;
    try {
      written = writeSync(this.#fd, data);
    } catch (error) {
      // For instance EIO: no process has the terminal open.
      if (errnoOf(error) !== 'EAGAIN') return done();
    }
    if (written === data.length) return done();
    const nextMs = written > 0 ? terminalRetryMs : Math.min(2 * waitMs, maxTerminalRetryMs);
    this.#retry = setTimeout(() => this.#write(data.subarray(written), nextMs, done), nextMs);
  }
}

/**
 * Starts a process with a new terminal as stdin, stdout and stderr.
 * @throws {DroverError} missing-component, no-room, runtime-failed, and the result of `refused` for an error of execve(2)
 */
export async function spawnTerminal(
  resolved: Command,
  rows: number,
  columns: number,
  refused: (error: unknown) => DroverError,
): Promise<Spawned> {
  const pty = addon();
  const size = { rows: clampSize(rows, 24), columns: clampSize(columns, 80) };
  const { promise: exited, resolve: settle } = Promise.withResolvers<RawExit>();
  const command = withGroups(resolved);
  const fork = () =>
    pty.fork(
      command.file,
      command.argv.slice(1),
      Object.entries(command.env).map(([name, value]) => `${name}=${value}`),
      command.workdir,
      size.columns,
      size.rows,
      command.user.uid,
      command.user.gid,
      true,
      '',
      (code, signal) => settle(signal === 0 ? exitedWith(code) : endedBy(signal)),
    );
  const untilExec = makePipe();
  // A new terminal belongs to the file user of its opener (devpts): the command's user, who may open it again as /dev/stdout.
  const { fd, pid } = closingOnError(untilExec, () => withFileOwner(resolved.user.uid, fork));
  // The addon would leave it open in all later children, which could then read this terminal and write to it.
  closeOnExec(fd);
  terminalChildren.add(pid);
  // The addon has reaped it by then; until then its pid cannot be reused.
  void exited.finally(() => terminalChildren.delete(pid));
  const head = await outputAtExec(untilExec, fd);
  const stream = new ReadStream(fd);
  // A terminal reports EIO when its last process has ended.
  stream.on('error', () => stream.destroy());
  const errno = errnoOfFailure(head.toString('latin1'));
  if (errno !== undefined) {
    stream.destroy();
    throw refused(Object.assign(new Error(`execve ${command.file}: ${errno}`), { code: errno }));
  }
  if (head.length > 0) stream.unshift(head);
  const stdin = new TerminalInput(stream, fd);
  void exited.then(() => stdin.destroy());
  return {
    pid,
    stdin,
    stdout: stream,
    stderr: undefined,
    exited,
    // Ctrl-D is a terminal's end of file.
    endStdin: () => {
      if (stdin.writable) stdin.write('\x04');
    },
    resize: (newRows, newColumns) => {
      if (!stream.destroyed) pty.resize(fd, clampSize(newColumns, 80), clampSize(newRows, 24));
    },
    kill: (signal) => killGroup(pid, signal),
  };
}

/** Closes the pipe when `work` fails: fork fails whenever the sandbox has reached its limit of processes or terminals. */
function closingOnError<T>(pipe: Pipe, work: () => T): T {
  try {
    return work();
  } catch (error) {
    for (const end of [pipe.reader, pipe.writer]) closeSync(end);
    throw error;
  }
}

/**
 * The output of the terminal when the child has become its program, or has failed to: both ends of `pipe` are closed on exec.
 */
async function outputAtExec(pipe: Pipe, fd: number): Promise<Buffer> {
  closeSync(pipe.writer);
  const end = new Socket({ fd: pipe.reader, readable: true, writable: false });
  const timer = setTimeout(() => end.destroy(), execMs);
  end.on('error', () => undefined);
  await new Promise((resolve) => end.once('close', resolve).resume());
  clearTimeout(timer);
  const head = Buffer.alloc(maxExecFailureBytes);
  try {
    return head.subarray(0, readSync(fd, head));
  } catch {
    // EAGAIN: no output yet. EIO: the process has ended.
    return head.subarray(0, 0);
  }
}

/** The addon's child reports on the terminal, by perror(3), why it could not become its program. */
function errnoOfFailure(text: string): string | undefined {
  const [, message] = /^(?:chdir|setgid|setuid|execvp)\(\d\) failed\.: ([^\r\n]+)\r\n$/.exec(text) ?? [];
  if (message === undefined) return undefined;
  const known = getSystemErrorMap()
    .values()
    .find(([, words]) => words === message.toLowerCase());
  return known?.[0] ?? message;
}

function clampSize(value: number, fallback: number): number {
  return value > 0 && value < 65_536 ? value : fallback;
}
