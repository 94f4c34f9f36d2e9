import { readFileSync } from 'node:fs';
import { DroverError } from '@drover/foundation';
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

export function isMounted(path: string): boolean {
  return mountPoints().includes(path);
}
