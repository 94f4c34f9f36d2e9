import { spawn as spawnChild } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { DroverError, errnoOf } from '@drover/foundation';
import { oomScoreRetryMs, oomScoreTries, workloadOomScoreAdj } from '../limits.ts';
import { commandNotFound, notExecutable, resolveCommand, type Command } from './command.ts';
import { withGroups } from './groups.ts';
import { killGroup, rawExit, type RawExit, type Spawned, type Spawner } from './spawned.ts';
import { spawnTerminal } from './terminal.ts';

/** Pids that somebody else waits for (libuv, the terminal addon): the reaper leaves them alone. */
export const ownChildren = new Set<number>();

/** Starts a real process in a session and process group of its own. @throws {DroverError} see resolveCommand; no-room */
export const spawnProcess: Spawner = async (request) => {
  const command = withGroups(resolveCommand(request));
  const spawned = request.terminal ? spawnTerminal(command, request.rows, request.columns) : await spawnPiped(command, request.stdin);
  ownChildren.add(spawned.pid);
  // Only once its own waiter has reaped it; until then its number cannot be another's.
  void spawned.exited.finally(() => ownChildren.delete(spawned.pid));
  raiseOomScore(spawned);
  return spawned;
};

/**
 * Raising it is always permitted, but of a process that has not become its own program yet: until then it is as closed as init (see the
 * agent's init-directory.ts). Without /proc, or with the process gone, there is nothing to raise.
 */
function raiseOomScore({ pid, exited }: Spawned): void {
  let timer: NodeJS.Timeout | undefined;
  const raise = (tries: number): void => {
    try {
      writeFileSync(`/proc/${pid}/oom_score_adj`, String(workloadOomScoreAdj));
    } catch {
      if (tries > 1) timer = setTimeout(() => raise(tries - 1), oomScoreRetryMs * 2 ** (oomScoreTries - tries)).unref();
    }
  };
  raise(oomScoreTries);
  // Its number may be another's afterwards.
  void exited.finally(() => clearTimeout(timer));
}

async function spawnPiped(command: Command, stdin: boolean): Promise<Spawned> {
  let child;
  try {
    child = spawnChild(command.file, command.argv.slice(1), {
      argv0: command.argv[0] ?? command.file,
      cwd: command.workdir,
      env: command.env,
      uid: command.user.uid,
      gid: command.user.gid,
      detached: true,
      stdio: [stdin ? 'pipe' : 'ignore', 'pipe', 'pipe'],
    });
  } catch (error) {
    throw spawnError(command, error);
  }
  const { pid, stdout, stderr } = child;
  if (pid === undefined || stdout === null || stderr === null) {
    throw spawnError(command, await new Promise((resolve) => child.once('error', resolve)));
  }
  // EPIPE when the process no longer reads: its business, not ours.
  child.stdin?.on('error', () => undefined);
  const exited = new Promise<RawExit>((resolve) => child.once('exit', (code, signal) => resolve(rawExit(code, signal))));
  return {
    pid,
    stdin: child.stdin ?? undefined,
    stdout,
    stderr,
    exited,
    endStdin: () => child.stdin?.end(),
    resize: () => undefined,
    kill: (signal) => killGroup(pid, signal),
  };
}

/** What execve(2) refused, in the codes that shells use. */
function spawnError(command: Command, error: unknown): DroverError {
  const name = command.argv[0] ?? command.file;
  switch (errnoOf(error)) {
    case 'ENOENT':
      return commandNotFound(name);
    case 'EACCES':
      return notExecutable(name, 'permission denied');
    case 'ENOEXEC':
      return notExecutable(name, 'not a program for this machine');
    case 'EAGAIN':
      return new DroverError('no-room', `${name}: the sandbox may not start more processes`, { hint: 'raise --pids', cause: error });
    default:
      return DroverError.from(error, 'runtime-failed');
  }
}
