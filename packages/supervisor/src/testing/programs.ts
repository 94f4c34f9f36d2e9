import { readFile } from 'node:fs/promises';
import { silentLogger } from '@drover/foundation/log';
import { onTestFinished } from 'vitest';
import { daemon, SupervisedProcess, type DaemonSpec, type SupervisedProcessOptions } from '../index.ts';

/** For tests: a supervised Node.js program, which is killed when the test has finished. */
export function supervise(program: string, spec: Partial<DaemonSpec> = {}, options: SupervisedProcessOptions = {}): SupervisedProcess {
  const child = new SupervisedProcess(
    daemon({ name: 'child', argv: [process.execPath, '-e', program], env: {}, ...spec }, silentLogger),
    options,
  );
  onTestFinished(async () => await child.stop(0));
  return child;
}

/** Reports whether the process exists and is no zombie. */
export async function isRunning(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z');
  return !stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z');
}
