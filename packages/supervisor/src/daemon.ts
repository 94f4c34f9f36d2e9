import { spawn, type ChildProcess, type StdioOptions } from 'node:child_process';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { errnoOf, systemClock, type Logger } from '@drover/foundation';
import { channelHealth, channelVariable } from './channel.ts';
import type { Health } from './health.ts';
import type { Exit } from './lifecycle.ts';
import { limits } from './limits.ts';
import { logLines } from './output.ts';
import type { Child, ProcessSpec } from './process.ts';
import { firstPassedFd, passingEnvironment, withListenPid, type PassedDescriptor } from './sockets.ts';

/** A program that a supervisor runs (G-4). */
export interface DaemonSpec {
  /** Unique within its supervisor; in every log line. */
  readonly name: string;
  /** Program and arguments; no shell. */
  readonly argv: readonly [string, ...string[]];
  /** The whole environment: nothing is inherited (G-11). A replacement also has `lastEndVariable`. */
  readonly env: Readonly<Record<string, string>>;
  readonly user?: { readonly uid: number; readonly gid: number };
  /** Passed from descriptor 3 on (G-9). They stay open here, for the replacement. */
  readonly sockets?: readonly PassedDescriptor[];
  /** `channel`: the daemon calls `connectToSupervisor`. Absent: it is ready as soon as it runs. */
  readonly health?: Health | 'channel';
  readonly policy?: ProcessSpec['policy'];
  /** The daemon runs on when its supervisor ends; it gets no channel then (G-29). */
  readonly outlivesSupervisor?: boolean;
  /** Receives its output line by line, in place of the log: for programs whose lines are log entries already. */
  readonly onLine?: (line: string, pid: number) => void;
}

/** How the previous process ended: the name of the signal, or the exit status. A service manager may set it as well. */
export const lastEndVariable = 'DROVER_LAST_END';

/** Pids of daemons, each from its spawn until Node.js has reaped it. */
const running = new Set<number>();

/** Reports whether the pid is that of a daemon, whose exit Node.js waits for. */
export function isDaemon(pid: number): boolean {
  return running.has(pid);
}

/** What a supervisor runs for the spec: a child process in its own session and process group, which ends with everything that it started. */
export function daemon(spec: DaemonSpec, logger: Logger): ProcessSpec {
  let channel: Socket | undefined;
  const health = spec.health === 'channel' ? { dial: async () => channelHealth(channel as Socket) } : spec.health;
  return {
    name: spec.name,
    launch: async (lastExit) => {
      const child = start(spec, lastExit);
      child.on('error', (error) => logger.warn({ process: spec.name, err: error.message }, 'the process reports an error'));
      // An error before the spawn is the reason why there is no process; once() rejects with it.
      await once(child, 'spawn');
      channel = child.stdio[firstPassedFd + (spec.sockets?.length ?? 0)] as Socket | undefined;
      channel?.on('error', () => undefined);
      followOutput(child, spec, logger);
      return supervised(child);
    },
    ...(health !== undefined && { health }),
    ...(spec.policy !== undefined && { policy: spec.policy }),
  };
}

function start({ argv, env, user, sockets = [], outlivesSupervisor = false }: DaemonSpec, lastExit: Exit | undefined): ChildProcess {
  const [program, ...args] = sockets.length === 0 ? argv : withListenPid(argv);
  const stdio: StdioOptions = [
    'ignore',
    'pipe',
    'pipe',
    ...sockets.map(({ fd }) => fd),
    ...(outlivesSupervisor ? [] : (['pipe'] as const)),
  ];
  const child = spawn(program, args, {
    env: {
      ...env,
      ...passingEnvironment(sockets),
      ...(!outlivesSupervisor && { [channelVariable]: String(firstPassedFd + sockets.length) }),
      ...(lastExit !== undefined && { [lastEndVariable]: lastExit.signal ?? String(lastExit.code) }),
    },
    stdio,
    // A session of its own: signals reach everything that the daemon starts, and those for this process do not reach the daemon.
    detached: true,
    ...user,
  });
  // In the turn of the spawn: no reaper of orphans can come first.
  const { pid } = child;
  if (pid !== undefined) {
    running.add(pid);
    child.once('exit', () => running.delete(pid));
  }
  return child;
}

function supervised(child: ChildProcess): Child {
  const pid = child.pid as number;
  let released = false;
  const exited = once(child, 'exit').then(([code, signal]) => {
    // what the daemon started does not outlive it.
    if (!released) signalGroup(pid, 'SIGKILL');
    void systemClock.sleep(limits.outputDrainMs).then(() => closeOutput(child));
    return { code: code as number | null, signal: signal as NodeJS.Signals | null };
  });
  return {
    pid,
    exited,
    kill: (signal) => signalGroup(pid, signal),
    release: () => {
      released = true;
      child.unref();
      closeOutput(child);
    },
  };
}

function followOutput(child: ChildProcess, { name, onLine }: DaemonSpec, logger: Logger): void {
  const pid = child.pid ?? 0;
  for (const stream of ['stdout', 'stderr'] as const) {
    const source = child[stream];
    if (source === null) continue;
    const fields = { process: name, childPid: pid, stream };
    logLines(source, {
      write: (line) => (onLine === undefined ? logger.info(fields, line) : onLine(line, pid)),
      dropped: (lines) => logger.warn({ ...fields, lines }, 'output dropped: too many lines in a second'),
    });
  }
}

function closeOutput(child: ChildProcess): void {
  for (const stream of child.stdio) stream?.destroy();
}

/** Signals a process group. A group that has ended is no error. */
export function signalGroup(pid: number, signal: NodeJS.Signals | number): void {
  try {
    process.kill(-pid, signal);
  } catch (error) {
    if (errnoOf(error) !== 'ESRCH') throw error;
  }
}
