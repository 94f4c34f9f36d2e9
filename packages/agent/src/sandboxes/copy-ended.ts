import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { DroverError } from '@drover/foundation';
import { readHostStream } from '@drover/protocol';
import type { StoppedRoot } from '../backends/index.ts';
import { maxEndedCopies } from '../limits.ts';
import type { CopyPart, CopySource } from './sandboxes.ts';

// From sources the program runs .ts with type stripping and needs the workspace's resolution; as published, .js.
const fromSource = import.meta.url.endsWith('.ts');
const script = new URL(fromSource ? './copy-ended-program.ts' : './copy-ended-program.js', import.meta.url).pathname;
const nodeFlags = ['--disable-warning=ExperimentalWarning', ...(fromSource ? ['--conditions=development'] : [])];

/**
 * Copies out of a sandbox that has ended. A separate program makes the sandbox's root its own and reads there: links cannot lead out of the root,
 * and a slow file system blocks only the program.
 * @param workdir the base of a relative path
 * @throws {DroverError} queue-full; the program's error
 */
export async function* copyEnded(
  root: StoppedRoot,
  workdir: string,
  { path, followLinks }: CopySource,
  signal: AbortSignal,
): AsyncGenerator<CopyPart, void, undefined> {
  if (running >= maxEndedCopies) {
    throw new DroverError('queue-full', `${running} copies out of ended sandboxes are under way on this host`, {
      hint: 'try again when one of them has ended',
    });
  }
  running++;
  try {
    yield* runCopy(JSON.stringify({ root, workdir, path: Buffer.from(path).toString('latin1'), followLinks }), signal);
  } finally {
    running--;
  }
}

let running = 0;

async function* runCopy(request: string, signal: AbortSignal): AsyncGenerator<CopyPart, void, undefined> {
  const child = spawn(process.execPath, [...nodeFlags, script, request], { env: {}, stdio: ['ignore', 'pipe', 'ignore'] });
  const closed = once(child, 'close');
  // A program that cannot be started rejects this, and ends the stream.
  closed.catch(() => undefined);
  let count = 0;
  try {
    for await (const message of readHostStream(child.stdout, signal)) {
      count++;
      yield { message };
    }
  } finally {
    child.kill('SIGKILL');
    await closed;
  }
  if (count === 0) throw new DroverError('runtime-failed', 'the program that copies out of an ended sandbox could not be run');
}
