import { Worker } from 'node:worker_threads';
import { DroverError } from '@drover/foundation';
import type { ThreadAnswer, ThreadTask } from './unpack-thread.ts';
import type { LayerFile, UnpackedLayer } from './unpack.ts';

/**
 * Unpacking writes with synchronous calls, which a slow disk can hold for seconds; in a thread of its own it holds up
 * neither the host's heartbeats nor other sandboxes.
 */
export async function unpackInThread(
  file: LayerFile,
  directory: string,
  diffId: string | undefined,
  signal: AbortSignal,
): Promise<UnpackedLayer> {
  const layer = await run({ kind: 'unpack', file, directory, diffId }, signal);
  if (layer === undefined) throw new DroverError('internal', 'the unpacking thread gave no layer');
  return layer;
}

/** Writes back everything of the directory's file system. */
export async function syncInThread(directory: string, signal: AbortSignal): Promise<void> {
  await run({ kind: 'sync', directory }, signal);
}

// From sources the thread runs .ts with type stripping and needs the workspace's resolution; as published, .js.
const fromSource = import.meta.url.endsWith('.ts');
const script = new URL(fromSource ? './unpack-thread.ts' : './unpack-thread.js', import.meta.url);
const execArgv = ['--disable-warning=ExperimentalWarning', ...(fromSource ? ['--conditions=development'] : [])];

async function run(task: ThreadTask, signal: AbortSignal): Promise<UnpackedLayer | undefined> {
  signal.throwIfAborted();
  const worker = new Worker(script, { workerData: task, execArgv, name: `images-${task.kind}` });
  const { promise, resolve, reject } = Promise.withResolvers<ThreadAnswer>();
  const abort = (): void => reject(signal.reason as Error);
  worker.once('message', resolve);
  worker.once('error', reject);
  worker.once('exit', () => reject(new DroverError('internal', 'the unpacking thread ended without an answer')));
  signal.addEventListener('abort', abort, { once: true });
  try {
    const answer = await promise;
    if ('error' in answer) {
      const { code, message, hint } = answer.error;
      throw new DroverError(code, message, hint === undefined ? {} : { hint });
    }
    return answer.layer;
  } finally {
    signal.removeEventListener('abort', abort);
    await worker.terminate();
  }
}
