import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import { readHostStream, type link } from '@drover/protocol';
import { maxEndedCopies } from '../limits.ts';
import type { StoppedRoot } from '../runtimes/runtime.ts';

// From sources the program runs .ts with type stripping and needs the workspace's resolution; as published, .js.
const fromSource = import.meta.url.endsWith('.ts');
const script = new URL(fromSource ? './copy-ended-program.ts' : './copy-ended-program.js', import.meta.url).pathname;
const nodeFlags = ['--disable-warning=ExperimentalWarning', ...(fromSource ? ['--conditions=development'] : [])];

/**
 * A copy out of a sandbox that has ended. A program of its own reads its root, as the sandbox's init would: its links lead nowhere else, since
 * the root is the program's own, and whatever in it is slow holds up only the program.
 * @param workdir what a relative path is relative to
 * @throws {DroverError} queue-full; what the program reports
 */
export async function* copyEnded(
  root: StoppedRoot,
  workdir: string,
  { path, followLinks }: link.HostCopyOut,
  signal: AbortSignal,
): AsyncGenerator<MessageInitShape<typeof link.HostStreamMessageSchema>, void, undefined> {
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

async function* runCopy(
  request: string,
  signal: AbortSignal,
): AsyncGenerator<MessageInitShape<typeof link.HostStreamMessageSchema>, void, undefined> {
  const child = spawn(process.execPath, [...nodeFlags, script, request], { env: {}, stdio: ['ignore', 'pipe', 'ignore'] });
  const closed = once(child, 'close');
  // A program that cannot be started says so here, and ends the stream.
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
