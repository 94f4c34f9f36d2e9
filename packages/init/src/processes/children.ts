import type { ChildProcess } from 'node:child_process';
import { childExit } from '@drover/linux';
import { signalExitCode, signalName } from '@drover/spec';
import type { RawExit } from './spawned.ts';

/** Children that the terminal addon waits for. */
export const terminalChildren = new Set<number>();

/**
 * Resolves when a child ends. Node reports an end by a real-time signal as exit status 0, so libuv has to leave the child to waitpid(2). Call it
 * in the same turn as the spawn, before libuv can reap the child.
 */
export async function exitOf(child: ChildProcess, pid: number): Promise<RawExit> {
  // Closing Node's internal handle of the process ends libuv's wait, and nothing else.
  (child as unknown as { readonly _handle: { close(): void } })._handle.close();
  const { code, signal } = await childExit(pid);
  return signal === 0 ? exited(code) : endedBy(signal);
}

export function exited(code: number): RawExit {
  return { code, signal: '' };
}

export function endedBy(signal: number): RawExit {
  return { code: signalExitCode(signal), signal: signalName(signal) };
}
