import { Worker } from 'node:worker_threads';
import { DroverError } from '@drover/foundation';
import { idleThreadMs, maxUnpacks } from '../../limits.ts';
import type { ThreadAnswer, ThreadTask } from './unpack-thread.ts';
import type { LayerFile, UnpackedLayer } from './unpack.ts';

/** Unpacks in a thread: synchronous calls on a slow disk must not delay the host's heartbeats and other sandboxes. */
export async function unpackInThread(
  file: LayerFile,
  directory: string,
  diffId: string | undefined,
  lower: readonly string[] | undefined,
  signal: AbortSignal,
): Promise<UnpackedLayer | 'needs-lower-layers'> {
  const layer = await run({ kind: 'unpack', file, directory, diffId, lower }, signal);
  if (layer === undefined) throw new DroverError('internal', 'the unpacking thread returned no layer');
  return layer;
}

/** Writes back the directory's whole file system. */
export async function syncInThread(directory: string, signal: AbortSignal): Promise<void> {
  await run({ kind: 'sync', directory }, signal);
}

// From sources the thread runs .ts with type stripping and needs the workspace's resolution; as published, .js.
const fromSource = import.meta.url.endsWith('.ts');
const script = new URL(fromSource ? './unpack-thread.ts' : './unpack-thread.js', import.meta.url);
const execArgv = ['--disable-warning=ExperimentalWarning', ...(fromSource ? ['--conditions=development'] : [])];

/** Threads that wait for the next layer: starting a thread costs more than unpacking a small layer. */
const idle: Worker[] = [];

function start(): Worker {
  const worker = new Worker(script, { execArgv, name: 'images-unpack' });
  const forget = (): void => {
    const at = idle.indexOf(worker);
    if (at !== -1) idle.splice(at, 1);
  };
  // While it works, `run` listens too.
  worker.on('error', forget);
  worker.on('exit', forget);
  return worker;
}

/** Keeps a thread for a while, without keeping the process. */
function park(worker: Worker): void {
  worker.unref();
  idle.push(worker);
  const timer = setTimeout(() => {
    // Removed first: a thread that is ending must not get work.
    const at = idle.indexOf(worker);
    if (at === -1) return;
    idle.splice(at, 1);
    void worker.terminate();
  }, idleThreadMs);
  timer.unref();
}

async function run(task: ThreadTask, signal: AbortSignal): Promise<UnpackedLayer | 'needs-lower-layers' | undefined> {
  signal.throwIfAborted();
  const worker = idle.pop() ?? start();
  worker.ref();
  const { promise, resolve, reject } = Promise.withResolvers<ThreadAnswer>();
  const abort = (): void => reject(signal.reason as Error);
  const ended = (): void => reject(new DroverError('internal', 'the unpacking thread ended without a result'));
  worker.on('message', resolve);
  worker.on('error', reject);
  worker.on('exit', ended);
  signal.addEventListener('abort', abort, { once: true });
  let answered = false;
  try {
    // A thread has no origin; the rule means windows.
    // oxlint-disable-next-line unicorn/require-post-message-target-origin
    worker.postMessage(task);
    const answer = await promise;
    answered = true;
    if ('error' in answer) {
      const { code, message, hint } = answer.error;
      throw new DroverError(code, message, hint === undefined ? {} : { hint });
    }
    return answer.layer;
  } finally {
    signal.removeEventListener('abort', abort);
    worker.off('message', resolve);
    worker.off('error', reject);
    worker.off('exit', ended);
    if (answered && idle.length < maxUnpacks) park(worker);
    // Terminated before the caller removes its directory.
    else await worker.terminate();
  }
}
