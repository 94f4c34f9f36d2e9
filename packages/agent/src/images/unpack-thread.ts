import { open } from 'node:fs/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { DroverError } from '@drover/foundation';
import { systemCalls } from './system-calls.ts';
import { unpackLayer, type LayerFile, type UnpackedLayer } from './unpack.ts';

/** The thread's side of layers.ts: one task, one answer. */
export type ThreadTask =
  | { readonly kind: 'unpack'; readonly file: LayerFile; readonly directory: string; readonly diffId: string | undefined }
  | { readonly kind: 'sync'; readonly directory: string };

export type ThreadAnswer =
  | { readonly layer: UnpackedLayer | undefined }
  | { readonly error: { readonly code: DroverError['code']; readonly message: string; readonly hint: string | undefined } };

async function work(task: ThreadTask): Promise<ThreadAnswer> {
  try {
    if (task.kind === 'unpack') return { layer: await unpackLayer(task.file, task.directory, task.diffId) };
    const directory = await open(task.directory, 'r');
    try {
      systemCalls().syncFileSystem(directory.fd);
    } finally {
      await directory.close();
    }
    return { layer: undefined };
  } catch (thrown) {
    const { code, message, hint } = DroverError.from(thrown, 'corrupt-image');
    return { error: { code, message, hint } };
  }
}

parentPort?.postMessage(await work(workerData as ThreadTask));
