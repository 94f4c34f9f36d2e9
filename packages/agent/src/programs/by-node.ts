import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import type { Launcher } from './launcher.ts';

/** Through node:child_process, which forks: everything in this process waits while its page tables are copied. */
export const launchByNode: Launcher = async (path, args, { env, streams = [], channel = false }) => {
  const [stdin, stdout, stderr] = (['stdin', 'stdout', 'stderr'] as const).map((name) => (streams.includes(name) ? 'pipe' : 'ignore'));
  const child = spawn(path, args, { env, stdio: [stdin, stdout, stderr, ...(channel ? (['pipe'] as const) : [])] });
  const ended = once(child, 'exit').then(([code]) => code as number | null);
  // Thrown right here, when it could not be started.
  ended.catch(() => undefined);
  if (child.pid === undefined) await ended;
  return {
    pid: child.pid ?? 0,
    stdin: (child.stdin ?? undefined) as Socket | undefined,
    stdout: (child.stdout ?? undefined) as Socket | undefined,
    stderr: (child.stderr ?? undefined) as Socket | undefined,
    channel: (child.stdio[3] ?? undefined) as Socket | undefined,
    ended,
    kill: () => void child.kill('SIGKILL'),
  };
};
