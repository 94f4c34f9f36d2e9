import { readFileSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { DroverError, errnoOf } from '@drover/foundation';
import { mountProgramMs, programOutputBytes } from '../limits.ts';
import { runProgram } from '../programs/index.ts';

/** Runs mount(8) or umount(8). @throws {DroverError} runtime-failed */
export async function mountProgram(program: 'mount' | 'umount', args: readonly string[]): Promise<void> {
  const limits = { timeoutMs: mountProgramMs, maxOutputBytes: programOutputBytes };
  let reason: string;
  try {
    const { code, stderr } = await runProgram(program, args, limits);
    if (code === 0) return;
    reason = stderr.trim() || (code === null ? 'it was killed' : `it ended with ${code}`);
  } catch (error) {
    throw new DroverError('runtime-failed', `${program} cannot be started: ${String(error)}`, { cause: error });
  }
  throw new DroverError('runtime-failed', `${program} failed: ${reason}`);
}

/** Where something is mounted, deepest last: /proc/self/mountinfo, fifth field, octal escapes undone (proc(5)). */
export function mountPoints(): string[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .flatMap((line) => line.split(' ')[4] ?? [])
    .map((path) => path.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))));
}

/**
 * Whether a directory is where a disk is mounted. For checks that are made often: unlike `isMounted`, it does not read the list of all mounts,
 * and so does not see the binding of a directory of the same file system.
 */
export async function isDiskRoot(path: string): Promise<boolean> {
  try {
    const [own, above] = await Promise.all([stat(path), stat(dirname(path))]);
    return own.dev !== above.dev;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
}

export function isMounted(path: string): boolean {
  return mountPoints().includes(path);
}
