import type { Socket } from 'node:net';
import { launch, type LaunchOptions } from './launch.ts';
import { killedProgramMs, programOutputBytes } from './limits.ts';

export interface RunOptions extends Pick<LaunchOptions, 'env'> {
  /** Written to the program's stdin, which is /dev/null without it. */
  readonly input?: string;
  /** The program is killed after this time. Milliseconds. */
  readonly timeoutMs: number;
  /** Bytes that it may print on each stream; then it is killed. Default: `programOutputBytes`. */
  readonly maxOutputBytes?: number;
}

export interface Finished {
  /** Null when the program was killed, by its limits or by another process. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** Set when the program was killed and hangs in the kernel; resolves when it has ended. */
  readonly stuck?: Promise<unknown>;
}

/**
 * Runs a program until it and its streams have ended. Waits at most `killedProgramMs` for a program that was killed.
 * @throws {Error} with `code` when the program cannot be started
 */
export async function runProgram(program: string, args: readonly string[], options: RunOptions): Promise<Finished> {
  const { input, env, timeoutMs, maxOutputBytes = programOutputBytes } = options;
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
    // A program that ends before it has read its input reports the reason by its exit code.
    child.stdin?.on('error', () => undefined);
    child.stdin?.end(input ?? '');
    const output = [child.stdout, child.stderr].map((stream) => readAll(stream as Socket, maxOutputBytes, kill));
    const finished = await Promise.race([Promise.all([child.ended, ...output]), stuck.promise]);
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

/** What a stream carries until it closes, which an error does too. */
async function readAll(stream: Socket, maxBytes: number, exceeded: () => void): Promise<string> {
  const parts: Buffer[] = [];
  let size = 0;
  stream.on('data', (data: Buffer) => {
    size += data.length;
    if (size > maxBytes) exceeded();
    else parts.push(data);
  });
  stream.on('error', () => undefined);
  await new Promise((resolve) => stream.once('close', resolve));
  return Buffer.concat(parts).toString();
}
