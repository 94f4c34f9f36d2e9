import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';

interface Answer {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: string;
}

/** How long a child may take over one request, ms. Longer fails the run. */
const requestMs = 180_000;

/** A process of the bench's own that answers requests one after another. Ended by its pid, whatever happens. */
export class Child implements AsyncDisposable {
  readonly #process: ChildProcess;
  readonly #waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  #lastId = 0;

  /** @param file below bench/ */
  constructor(file: string, args: readonly string[] = []) {
    this.#process = fork(join(import.meta.dirname, file), args, {
      // As the launcher starts Drover's own processes.
      execArgv: [...process.execArgv, '--max-semi-space-size=8', '--expose-gc'],
      env: { ...process.env, MALLOC_ARENA_MAX: '1', NODE_COMPILE_CACHE: join(import.meta.dirname, '..', '.cache', 'compile') },
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#process.on('message', (message) => {
      const { id, value, error } = message as Answer;
      const waiting = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) waiting?.resolve(value);
      else waiting?.reject(new Error(error));
    });
    this.#process.once('exit', (code, signal) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`${file} ended with ${String(code ?? signal)}`));
      this.#waiting.clear();
    });
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  async ask<T>(kind: string, argument?: unknown): Promise<T> {
    const id = ++this.#lastId;
    const answer = Promise.withResolvers<unknown>();
    this.#waiting.set(id, answer);
    const timer = setTimeout(() => answer.reject(new Error(`no answer to ${kind} within ${requestMs} ms`)), requestMs);
    this.#process.send({ id, kind, argument });
    try {
      return (await answer.promise) as T;
    } finally {
      clearTimeout(timer);
    }
  }

  async kill(): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    this.#process.kill('SIGKILL');
    await once(this.#process, 'exit');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** In the child: answers the parent's requests, and ends when the parent is gone. */
export function answerParent(handlers: Readonly<Record<string, (argument: never) => unknown>>): void {
  process.on('disconnect', () => process.exit(0));
  process.on('message', (message) => {
    const { id, kind, argument } = message as { id: number; kind: string; argument: never };
    void (async () => {
      try {
        const handler = handlers[kind];
        if (handler === undefined) throw new Error(`no request ${kind}`);
        process.send?.({ id, value: await handler(argument) });
      } catch (error) {
        process.send?.({ id, error: error instanceof Error ? (error.stack ?? error.message) : String(error) });
      }
    })();
  });
}

export interface MemoryUse {
  readonly rssBytes: number;
  readonly heapBytes: number;
}

/** This process's memory after everything that can be collected was. */
export async function memoryAfterGc(): Promise<MemoryUse> {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const { rss, heapUsed } = process.memoryUsage();
  return { rssBytes: rss, heapBytes: heapUsed };
}
