import { closeSync, openSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { DroverError, SerialExecutor } from '@drover/foundation';
import { rootReplacementMs, rootReplacementsQueued } from './limits.ts';
import type { RootReplacementAnswer, RootReplacementTask } from './root-replacement-thread.ts';

export type { AttachedMount } from './root-replacement-thread.ts';

export type RootReplacement = Omit<RootReplacementTask, 'mountNamespace' | 'utsNamespace'> & {
  /** The host's pid of the one process in the container. */
  readonly pid: number;
};

// From sources the thread runs .ts with type stripping and the workspace's resolution; as published, .js.
const fromSource = import.meta.url.endsWith('.ts');
const script = new URL(`./root-replacement-thread.${fromSource ? 'ts' : 'js'}`, import.meta.url);
const execArgv = ['--disable-warning=ExperimentalWarning', ...(fromSource ? ['--conditions=development'] : [])];

/**
 * Replaces the root and the host name of containers from outside. The process in the container takes no part and needs no privilege; it has the
 * new root when the call returns. One container at a time; each takes some milliseconds.
 */
export class RootReplacer {
  readonly #executor = new SerialExecutor(rootReplacementsQueued);
  #thread: Worker | undefined;

  /**
   * The caller closes the mounts, whatever the outcome. A container whose replacement failed must be destroyed.
   * @throws {DroverError} runtime-failed, timed-out
   */
  async replace({ pid, ...task }: RootReplacement): Promise<void> {
    await this.#executor.run(async () => {
      const namespaces: number[] = [];
      try {
        for (const name of ['mnt', 'uts']) namespaces.push(openSync(`/proc/${pid}/ns/${name}`, 'r'));
        const [mountNamespace = -1, utsNamespace = -1] = namespaces;
        const { error } = await this.#request({ ...task, mountNamespace, utsNamespace });
        if (error !== undefined) throw new DroverError('runtime-failed', error);
      } finally {
        for (const fd of namespaces) closeSync(fd);
      }
    });
  }

  async close(): Promise<void> {
    await this.#executor.idle();
    await this.#thread?.terminate();
  }

  async #request(task: RootReplacementTask): Promise<RootReplacementAnswer> {
    const thread = (this.#thread ??= this.#start());
    const { promise, resolve, reject } = Promise.withResolvers<RootReplacementAnswer>();
    const ended = (): void => reject(new DroverError('runtime-failed', 'the thread that enters namespaces ended'));
    // The thread hangs in the kernel, in a file system that does not respond: the next request has another thread.
    const late = setTimeout(() => {
      this.#thread = undefined;
      void thread.terminate();
      reject(new DroverError('timed-out', `the sandbox's root could not be set up within ${rootReplacementMs} ms`));
    }, rootReplacementMs);
    thread.on('message', resolve);
    thread.on('error', reject);
    thread.on('exit', ended);
    thread.ref();
    try {
      // A thread has no origin; the rule is about windows.
      // oxlint-disable-next-line unicorn/require-post-message-target-origin
      thread.postMessage(task);
      return await promise;
    } finally {
      clearTimeout(late);
      thread.unref();
      thread.off('message', resolve);
      thread.off('error', reject);
      thread.off('exit', ended);
    }
  }

  #start(): Worker {
    const thread = new Worker(script, { execArgv, name: 'root-replacement' });
    const forget = (): void => {
      if (this.#thread === thread) this.#thread = undefined;
    };
    thread.on('error', forget);
    thread.on('exit', forget);
    return thread;
  }
}
