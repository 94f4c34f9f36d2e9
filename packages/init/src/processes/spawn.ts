import { spawn as spawnChild, type ChildProcess } from 'node:child_process';
import { closeSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { DroverError, errnoOf } from '@drover/foundation';
import { setOomScoreAdjustment } from '@drover/linux';
import { oomScoreRetryMs, oomScoreTries, workloadOomScoreAdj } from '../limits.ts';
import { exitOf } from './children.ts';
import { commandNotFound, notExecutable, resolveCommand, type Command } from './command.ts';
import { withGroups } from './groups.ts';
import { killGroup, type RawExit, type Spawned, type Spawner } from './spawned.ts';
import { openStandardStream, type StandardStream } from './streams.ts';
import { spawnTerminal } from './terminal.ts';

/** Starts a process as the leader of a new session and process group. @throws {DroverError} see resolveCommand; no-room */
export const spawnProcess: Spawner = async (request) => {
  const command = resolveCommand(request);
  const spawned = request.terminal
    ? await spawnTerminal(command, request.rows, request.columns, (error) => spawnError(command, error))
    : await spawnPiped(command, request.stdin);
  raiseOomScore(spawned);
  return spawned;
};

/**
 * Makes the kernel choose the process before init when memory runs out. Its file in /proc is as closed as init's until it has become its program
 * (docs/decisions/0009), so this is retried. Without /proc, or when the process has ended, it has no effect.
 */
function raiseOomScore({ pid, exited }: Spawned): void {
  let timer: NodeJS.Timeout | undefined;
  const raise = (tries: number): void => {
    try {
      setOomScoreAdjustment(pid, workloadOomScoreAdj);
    } catch {
      if (tries > 1) timer = setTimeout(() => raise(tries - 1), oomScoreRetryMs * 2 ** (oomScoreTries - tries)).unref();
    }
  };
  raise(oomScoreTries);
  // Afterwards the pid may belong to another process.
  void exited.finally(() => clearTimeout(timer));
}

async function spawnPiped(command: Command, stdin: boolean): Promise<Spawned> {
  const { user } = command;
  const { file, argv, workdir, env, user: start } = withGroups(command);
  const opened: StandardStream[] = [];
  const open = (input: boolean): StandardStream => {
    const stream = openStandardStream(input, user);
    opened.push(stream);
    return stream;
  };
  let child: ChildProcess;
  let spawned: Spawned | undefined;
  try {
    const [input, output, errors] = [stdin ? open(true) : undefined, open(false), open(false)];
    child = spawnChild(file, argv.slice(1), {
      argv0: argv[0] ?? file,
      cwd: workdir,
      env,
      uid: start.uid,
      gid: start.gid,
      detached: true,
      stdio: [input?.theirs ?? 'ignore', output.theirs, errors.theirs],
    });
    const { pid } = child;
    if (pid !== undefined) spawned = pipedProcess(pid, exitOf(child, pid), input?.ours, output.ours, errors.ours);
  } catch (error) {
    throw spawnError(command, error);
  } finally {
    for (const stream of opened) {
      closeSync(stream.theirs);
      if (spawned === undefined) stream.ours.destroy();
    }
  }
  if (spawned === undefined) throw spawnError(command, await new Promise((resolve) => child.once('error', resolve)));
  return spawned;
}

function pipedProcess(pid: number, exited: Promise<RawExit>, stdin: Writable | undefined, stdout: Readable, stderr: Readable): Spawned {
  // EPIPE: the process no longer reads.
  stdin?.on('error', () => undefined);
  return {
    pid,
    stdin,
    stdout,
    stderr,
    exited,
    endStdin: () => stdin?.end(),
    resize: () => undefined,
    kill: (signal) => killGroup(pid, signal),
  };
}

/** An error of execve(2) in the codes that shells use: every error but a missing program is "cannot be executed". Exported for its tests. */
export function spawnError(command: Pick<Command, 'file' | 'argv'>, error: unknown): DroverError {
  const name = command.argv[0] ?? command.file;
  const errno = errnoOf(error);
  switch (errno) {
    case 'ENOENT':
      return commandNotFound(name);
    case 'EAGAIN':
      return new DroverError('no-room', `${name}: the sandbox may not start more processes`, { hint: 'raise --pids', cause: error });
    // Errors of init itself, not of the command.
    case undefined:
    case 'ENOMEM':
    case 'EMFILE':
    case 'ENFILE':
      return DroverError.from(error, 'runtime-failed');
    default:
      return notExecutable(name, refusals[errno] ?? errno);
  }
}

const refusals: Readonly<Record<string, string>> = {
  EACCES: 'permission denied',
  ENOEXEC: 'not a program for this machine',
  // execve(2): the file has capabilities outside of the bounding set and insists on them.
  EPERM: 'its file carries capabilities that a sandbox does not have; `setcap -r` removes them',
  E2BIG: 'its arguments and environment are too long',
  ETXTBSY: 'its file is open for writing',
  EISDIR: 'its interpreter is a directory',
  ELIBBAD: 'its interpreter is not a program',
  ELOOP: 'too many links or interpreters',
};
