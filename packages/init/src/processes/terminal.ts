import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { ReadStream } from 'node:tty';
import { DroverError } from '@drover/foundation';
import type { Command } from './command.ts';
import { killGroup, type RawExit, type Spawned } from './spawned.ts';

/** The native half of @lydell/node-pty 1.1.0, used directly: its JavaScript half knows no backpressure for stdin. */
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

/** Loaded for the first terminal: most sandboxes never have one. */
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

/** Starts a process with a terminal of its own as stdin, stdout and stderr. @throws {DroverError} missing-component, runtime-failed */
export function spawnTerminal(command: Command, rows: number, columns: number): Spawned {
  const pty = addon();
  const size = { rows: clampSize(rows, 24), columns: clampSize(columns, 80) };
  let settle: (exit: RawExit) => void = () => undefined;
  const exited = new Promise<RawExit>((resolve) => {
    settle = resolve;
  });
  const { fd, pid } = pty.fork(
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
    (code, signal) => settle(signal === 0 ? { code, signal: '' } : { code: 128 + signal, signal: signalName(signal) }),
  );
  const stream = new ReadStream(fd);
  // EIO is how a terminal says that its last process has gone.
  stream.on('error', () => stream.destroy());
  let open = true;
  stream.once('close', () => {
    open = false;
  });
  return {
    pid,
    stdin: stream,
    stdout: stream,
    stderr: undefined,
    exited,
    // Ctrl-D: a terminal has no other end of file.
    endStdin: () => {
      if (open) stream.write('\x04');
    },
    resize: (newRows, newColumns) => {
      if (open) pty.resize(fd, clampSize(newColumns, 80), clampSize(newRows, 24));
    },
    kill: (signal) => killGroup(pid, signal),
  };
}

function clampSize(value: number, fallback: number): number {
  return value > 0 && value < 65_536 ? value : fallback;
}

function signalName(number: number): string {
  return Object.entries(constants.signals).find(([, value]) => value === number)?.[0] ?? '';
}
