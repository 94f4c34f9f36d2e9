import { killedProgramMs } from '../limits.ts';
import { launch } from './launch.ts';
import type { LaunchOptions } from './launcher.ts';

export interface RunOptions extends Pick<LaunchOptions, 'env'> {
  /** For its stdin; absent: that is /dev/null. */
  readonly input?: string;
  /** Then it is killed. Milliseconds. */
  readonly timeoutMs: number;
  /** What it may print on either stream; more, and it is killed. Bytes. */
  readonly maxOutputBytes: number;
}

export interface Finished {
  /** Null when it was killed, by this or by somebody else. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** Set when it was killed and has not ended, since it hangs in the kernel; resolves when it has. */
  readonly stuck?: Promise<unknown>;
}

/** Runs a program to its end and its streams' ends; one that was killed is given `killedProgramMs` for that. @throws {Error} with `code` when it cannot be started */
export async function runProgram(program: string, args: readonly string[], options: RunOptions): Promise<Finished> {
  const { input, env, timeoutMs, maxOutputBytes } = options;
  const streams = ['stdout', 'stderr', ...(input === undefined ? [] : (['stdin'] as const))] as const;
  const child = await launch(program, args, { streams, ...(env !== undefined && { env }) });
  const stuck = Promise.withResolvers<'stuck'>();
  let giveUp: NodeJS.Timeout | undefined;
  const kill = (): void => {
    child.kill();
    giveUp ??= setTimeout(() => stuck.resolve('stuck'), killedProgramMs);
  };
  const timer = setTimeout(kill, timeoutMs);
  try {
    const said = (['stdout', 'stderr'] as const).map(async (name) => {
      const parts: Buffer[] = [];
      let size = 0;
      const stream = child[name];
      if (stream === undefined) return '';
      stream.on('data', (data: Buffer) => {
        size += data.length;
        if (size > maxOutputBytes) kill();
        else parts.push(data);
      });
      // A stream that breaks has no more to say; the exit code says how it went.
      stream.on('error', () => undefined);
      await new Promise((resolve) => stream.once('close', resolve));
      return Buffer.concat(parts).toString();
    });
    // A program that ends before it has read its input says why by its exit code.
    child.stdin?.on('error', () => undefined);
    child.stdin?.end(input ?? '');
    const finished = await Promise.race([Promise.all([child.ended, ...said]), stuck.promise]);
    if (finished === 'stuck') {
      for (const stream of [child.stdin, child.stdout, child.stderr]) stream?.destroy();
      return { code: null, stdout: '', stderr: '', stuck: child.ended };
    }
    const [code, stdout = '', stderr = ''] = finished;
    return { code, stdout, stderr };
  } finally {
    clearTimeout(timer);
    clearTimeout(giveUp);
  }
}
