import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, writeFileAtomic } from '@drover/foundation';
import { isSameProcess, processStart } from '@drover/linux';

/** The `up` that holds a data directory. The pid is stored with the start time, since pids are reused. */
interface Instance {
  readonly pid: number;
  readonly startedAt: string;
  readonly server: string;
}

const file = (data: string): string => join(data, 'up.json');

/**
 * Claims the data directory for this process, or adds the address to its claim.
 * @returns whether an earlier `up` ended without a release
 * @throws {DroverError} failed-precondition when one is running
 */
export async function claim(data: string, server = ''): Promise<boolean> {
  const before = await read(data);
  if (before !== undefined && before.pid !== process.pid && isSameProcess(before.pid, before.startedAt)) {
    throw new DroverError(
      'failed-precondition',
      `drover is already running${before.server === '' ? '' : ` on ${before.server}`} (process ${before.pid})`,
      {
        hint: 'use it: drover run host -- sh; or stop it first with Ctrl-C',
      },
    );
  }
  const startedAt = processStart(process.pid) ?? '';
  await writeFileAtomic(file(data), `${JSON.stringify({ pid: process.pid, startedAt, server } satisfies Instance)}\n`, 0o600);
  return before !== undefined;
}

export async function release(data: string): Promise<void> {
  await rm(file(data), { force: true });
}

/** The address of the `up` that holds the data directory; undefined when none runs. */
export async function runningServer(data: string): Promise<string | undefined> {
  const instance = await read(data);
  if (instance === undefined || instance.server === '') return undefined;
  return isSameProcess(instance.pid, instance.startedAt) ? instance.server : undefined;
}

async function read(data: string): Promise<Instance | undefined> {
  try {
    const value = JSON.parse(await readFile(file(data), 'utf8')) as Partial<Instance>;
    if (typeof value.pid === 'number' && typeof value.startedAt === 'string' && typeof value.server === 'string') return value as Instance;
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT' && !(error instanceof SyntaxError)) throw error;
  }
  return undefined;
}
