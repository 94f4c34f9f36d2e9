import { isatty } from 'node:tty';
import { DroverError, hasCode } from '@drover/foundation';
import type { ExecExit, ExecHandle } from '@drover/sdk';
import type { Cli } from './cli.ts';
import { impatientInterrupts } from './limits.ts';
import { DetachKeys, RawTerminal } from './terminal/index.ts';

export interface AttachOptions {
  readonly terminal: boolean;
  readonly stdin: boolean;
}

/** `onPurpose` is false if the caller's terminal was closed. */
export type AttachOutcome =
  | { readonly kind: 'exited'; readonly exit: ExecExit }
  | { readonly kind: 'detached'; readonly onPurpose: boolean };

/** Whether both stdin and stdout are a terminal. */
export function atTerminal(): boolean {
  return isatty(0) && isatty(1);
}

export function terminalSize(): { rows: number; columns: number } {
  return { rows: process.stdout.rows || 24, columns: process.stdout.columns || 80 };
}

const forwarded = ['SIGINT', 'SIGTERM', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'] as const;

/**
 * Connects the caller's streams, terminal and signals to a process until the process ends or the caller detaches. On a terminal, Ctrl-C is
 * a key. Otherwise it sends a signal to the process, and the third within a second detaches.
 */
export async function attach(cli: Cli, handle: ExecHandle, options: AttachOptions): Promise<AttachOutcome> {
  const using: (() => void)[] = [];
  const { promise: left, resolve: leave } = Promise.withResolvers<'detached' | 'hung-up'>();
  // `exit` rejects with the same error. Unhandled, this rejection would end the program.
  handle.started.catch(() => undefined);
  try {
    cli.takeSignals();
    using.push(passSignals(handle, leave));
    const raw = options.terminal && process.stdin.isTTY ? new RawTerminal(process.stdin, process.stdout) : undefined;
    if (raw !== undefined) {
      raw.enter();
      using.push(() => raw[Symbol.dispose]());
      using.push(raw.onResize((size) => handle.resize(size)));
    }
    if (options.stdin) using.push(passStdin(handle, raw !== undefined, () => leave('detached')));
    else handle.stdin.end();
    const output = Promise.all([pipe(cli, handle, 'stdout'), pipe(cli, handle, 'stderr')]);
    try {
      const outcome = await Promise.race([handle.exit, left]);
      if (typeof outcome === 'string') {
        handle.exit.catch(() => undefined);
        handle.detach();
        raw?.makeSane();
        return { kind: 'detached', onPurpose: outcome === 'detached' };
      }
      await output;
      return { kind: 'exited', exit: outcome };
    } catch (error) {
      raw?.makeSane();
      throw error;
    } finally {
      output.catch(() => undefined);
    }
  } finally {
    for (const end of using.reverse()) end();
  }
}

async function pipe(cli: Cli, handle: ExecHandle, stream: 'stdout' | 'stderr'): Promise<void> {
  for await (const chunk of handle[stream] as AsyncIterable<Uint8Array>) await cli.out.bytes(chunk, stream);
}

/** The caller's stdin to the process, with backpressure. */
function passStdin(handle: ExecHandle, keys: boolean, detach: () => void): () => void {
  const detachKeys = keys ? new DetachKeys() : undefined;
  const onData = (chunk: Buffer): void => {
    const { data, detached } = detachKeys?.feed(chunk) ?? { data: chunk, detached: false };
    if (data.length > 0 && !handle.stdin.write(data)) {
      process.stdin.pause();
      handle.stdin.once('drain', () => process.stdin.resume());
    }
    if (detached) detach();
  };
  const onEnd = (): void => {
    handle.stdin.end();
  };
  // An ended process reads no more; its exit status is reported.
  handle.stdin.on('error', () => undefined);
  process.stdin.on('data', onData);
  process.stdin.once('end', onEnd);
  process.stdin.once('error', onEnd);
  process.stdin.resume();
  return () => {
    process.stdin.off('data', onData);
    process.stdin.off('end', onEnd);
    process.stdin.off('error', onEnd);
    process.stdin.pause();
    process.stdin.unref?.();
  };
}

function passSignals(handle: ExecHandle, detach: (why: 'detached' | 'hung-up') => void): () => void {
  let interrupts: number[] = [];
  const onSignal = (signal: NodeJS.Signals): void => {
    const now = performance.now();
    interrupts = [...interrupts.filter((at) => now - at < 1000), now];
    if (signal === 'SIGINT' && interrupts.length >= impatientInterrupts) detach('detached');
    else handle.kill(signal);
  };
  // The terminal was closed: the process keeps running.
  const onHangUp = (): void => detach('hung-up');
  for (const signal of forwarded) process.on(signal, onSignal);
  process.on('SIGHUP', onHangUp);
  return () => {
    for (const signal of forwarded) process.off(signal, onSignal);
    process.off('SIGHUP', onHangUp);
  };
}

/** reports out-of-memory kills, which the status 137 alone does not explain. */
export function explainExit(cli: Cli, sandbox: string, { outOfMemory }: ExecExit): void {
  if (outOfMemory) cli.out.error(new DroverError('no-room', `${sandbox} ran out of memory`, { hint: 'give it more with --memory' }));
}

/** The exit status of `run`, `exec` and `attach` for Drover's own failures: 125, or the shell's 126 and 127. */
export function wrapperStatus(error: DroverError): number {
  if (hasCode(error, 'command-not-found', 'command-not-executable', 'cancelled')) return error.exitCode;
  return 125;
}
