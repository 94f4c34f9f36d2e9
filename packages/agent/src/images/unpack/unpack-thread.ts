import { open } from 'node:fs/promises';
import { parentPort } from 'node:worker_threads';
import { DroverError } from '@drover/foundation';
import { NeedsLowerLayers } from './lower-layers.ts';
import { syncFileSystem } from '@drover/linux';
import { unpackLayer, type LayerFile, type UnpackedLayer } from './unpack.ts';

/** The thread's side of unpack-workers.ts: one task at a time, one answer each. */
export type ThreadTask =
  | {
      readonly kind: 'unpack';
      readonly file: LayerFile;
      readonly directory: string;
      readonly diffId: string | undefined;
      readonly lower: readonly string[] | undefined;
    }
  | { readonly kind: 'sync'; readonly directory: string };

export type ThreadAnswer =
  | { readonly layer: UnpackedLayer | 'needs-lower-layers' | undefined }
  | { readonly error: { readonly code: DroverError['code']; readonly message: string; readonly hint: string | undefined } };

async function work(task: ThreadTask): Promise<ThreadAnswer> {
  try {
    if (task.kind === 'unpack') return { layer: await unpackLayer(task.file, task.directory, task.diffId, task.lower) };
    const directory = await open(task.directory, 'r');
    try {
      syncFileSystem(directory.fd);
    } finally {
      await directory.close();
    }
    return { layer: undefined };
  } catch (thrown) {
    if (thrown instanceof NeedsLowerLayers) return { layer: 'needs-lower-layers' };
    const { code, message, hint } = DroverError.from(thrown, 'corrupt-image');
    return { error: { code, message, hint } };
  }
}

parentPort?.on('message', (task: ThreadTask) => {
  // It never rejects.
  void work(task).then((answer) => {
    // A port between threads has no origin; the rule means windows.
    // oxlint-disable-next-line unicorn/require-post-message-target-origin
    parentPort?.postMessage(answer);
  });
});
