import { closeSync, openSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { DroverError, SerialExecutor } from '@drover/foundation';
import { bindingMs, bindingsWaiting } from '../../limits.ts';
import type { BindingAnswer, BindingTask } from './binding-thread.ts';

export type Binding = Omit<BindingTask, 'mountNamespace' | 'utsNamespace'> & {
  /** The host's pid of the one process in the sandbox. */
  readonly pid: number;
};

// From sources the thread runs .ts with type stripping and needs the workspace's resolution; as published, .js.
const fromSource = import.meta.url.endsWith('.ts');
const script = new URL(fromSource ? './binding-thread.ts' : './binding-thread.js', import.meta.url);
const execArgv = ['--disable-warning=ExperimentalWarning', ...(fromSource ? ['--conditions=development'] : [])];

/**
 * Gives a sandbox that waits in a root of its own another root and another host name, from outside: the process in it neither takes part
 * nor needs a privilege for it, and finds itself in the new root. One at a time; each takes some milliseconds.
 */
export class Bindings {
  readonly #turns = new SerialExecutor(bindingsWaiting);
  #thread: Worker | undefined;

  /**
   * The mounts stay the caller's to close, whatever becomes of them. When it fails, the sandbox is of no more use.
   * @throws {DroverError} runtime-failed, timed-out
   */
  async bind({ pid, ...task }: Binding): Promise<void> {
    await this.#turns.run(async () => {
      const namespaces: number[] = [];
      try {
        for (const name of ['mnt', 'uts']) namespaces.push(openSync(`/proc/${pid}/ns/${name}`, 'r'));
        const [mountNamespace = -1, utsNamespace = -1] = namespaces;
        const { error } = await this.#ask({ ...task, mountNamespace, utsNamespace });
        if (error !== undefined) throw new DroverError('runtime-failed', error);
      } finally {
        for (const fd of namespaces) closeSync(fd);
      }
    });
  }

  async close(): Promise<void> {
    await this.#turns.idle();
    await this.#thread?.terminate();
  }

  async #ask(task: BindingTask): Promise<BindingAnswer> {
    const thread = (this.#thread ??= this.#start());
    const { promise, resolve, reject } = Promise.withResolvers<BindingAnswer>();
    const ended = (): void => reject(new DroverError('runtime-failed', 'the thread for namespaces ended'));
    // It hangs in the kernel, in a file system that does not answer: the next one gets another thread.
    const late = setTimeout(() => {
      this.#thread = undefined;
      void thread.terminate();
      reject(new DroverError('timed-out', `a sandbox could not be given its root within ${bindingMs} ms`));
    }, bindingMs);
    thread.on('message', resolve);
    thread.on('error', reject);
    thread.on('exit', ended);
    thread.ref();
    try {
      // A thread has no origin; the rule means windows.
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
    const thread = new Worker(script, { execArgv, name: 'sandbox-binding' });
    const forget = (): void => {
      if (this.#thread === thread) this.#thread = undefined;
    };
    // Whoever asks listens too.
    thread.on('error', forget);
    thread.on('exit', forget);
    return thread;
  }
}
