import { once } from 'node:events';
import { constants } from 'node:os';
import type { Readable } from 'node:stream';
import { maxOutputDrainBytes, maxOutputDrainMs, maxReaderLagBytes, outputDrainMs } from '../limits.ts';
import type { OomKills } from './oom-kills.ts';
import { ReplayBuffer, type OutputChunk, type ReplayBudget } from './replay.ts';
import type { RawExit, Spawned } from './spawned.ts';

export interface Exit extends RawExit {
  /** Milliseconds since the epoch. */
  readonly at: number;
  /** The kernel killed the process, or a child whose status it passed on, because the sandbox had no memory left. */
  readonly outOfMemory: boolean;
}

/** State that the processes of a sandbox share. */
export interface Shared {
  readonly replay: ReplayBudget;
  readonly oomKills: OomKills;
}

/** 128 + SIGKILL: the status of a killed process, and of a shell whose last command was killed. */
const killedStatus = 137;

/** A destination of a process's output beside its readers. */
export interface OutputSink {
  /** Returns whether it takes more now. */
  write(stderr: boolean, data: Buffer): boolean;
  /** Calls back when it takes more again. */
  onDrain(callback: () => void): void;
}

/**
 * A process whose last output is kept for any number of readers, each at its own offset, which can reattach (I-40). Output is read no faster than
 * the slowest reader and the sink take it. Without readers it is read, and the oldest is dropped.
 */
export class ManagedProcess {
  readonly id: string;
  readonly spawned: Spawned;
  readonly terminal: boolean;
  /** The exit, once the process has ended and its output is complete. */
  readonly finished: Promise<Exit>;
  #exit: Exit | undefined;
  readonly #replay: ReplayBuffer;
  readonly #readers = new Set<{ offset: number }>();
  #attachments = 0;
  #waiters: (() => void)[] = [];
  readonly #sources: Readable[];
  readonly #sink: OutputSink | undefined;
  #sinkFull = false;
  #paused = false;
  readonly #oomKills: OomKills;
  #killed = false;

  constructor(id: string, spawned: Spawned, terminal: boolean, shared: Shared, sink?: OutputSink) {
    this.id = id;
    this.spawned = spawned;
    this.terminal = terminal;
    this.#sink = sink;
    this.#replay = new ReplayBuffer(shared.replay);
    this.#oomKills = shared.oomKills;
    this.#oomKills.count();
    this.#sources = [spawned.stdout, ...(spawned.stderr === undefined ? [] : [spawned.stderr])];
    const ends = this.#sources.map((source) => this.#follow(source, source === spawned.stderr));
    this.finished = this.#finish(Promise.all(ends));
  }

  /** Readers that are attached. */
  get readers(): number {
    return this.#readers.size;
  }

  /** Readers that have attached so far. */
  get attachments(): number {
    return this.#attachments;
  }

  get exit(): Exit | undefined {
    return this.#exit;
  }

  /** Output bytes after `offset` that are no longer kept. */
  truncatedAfter(offset: number): number {
    return Math.max(0, this.#replay.start - offset);
  }

  get outputStart(): number {
    return this.#replay.start;
  }

  get outputEnd(): number {
    return this.#replay.end;
  }

  /** The output from `offset` to the end of the process. `signal` detaches the reader; the process runs on. */
  async *output(offset: number, signal: AbortSignal): AsyncGenerator<OutputChunk, void, undefined> {
    const reader = { offset: Math.min(offset, this.#replay.end) };
    this.#readers.add(reader);
    this.#attachments++;
    try {
      while (!signal.aborted) {
        const chunk = this.#replay.read(reader.offset);
        if (chunk !== undefined) {
          yield chunk;
          // Only after the consumer has sent it: until then the reader lags behind.
          reader.offset = chunk.offset + chunk.data.length;
          this.#flow();
        } else if (this.#exit !== undefined) {
          return;
        } else {
          await this.#changed(signal);
        }
      }
    } finally {
      this.#readers.delete(reader);
      this.#flow();
    }
  }

  /** Resolves when the process takes more input (I-39), or immediately when it no longer reads. */
  async write(data: Uint8Array, signal: AbortSignal): Promise<void> {
    const stdin = this.spawned.stdin;
    if (stdin === undefined || !stdin.writable) return;
    if (stdin.write(data)) return;
    const stop = new AbortController();
    const abort = (): void => stop.abort();
    signal.addEventListener('abort', abort, { once: true });
    try {
      // Room in the pipe, the end of the process, or the caller's abort.
      await Promise.race([once(stdin, 'drain', { signal: stop.signal }), once(stdin, 'close', { signal: stop.signal }), this.finished]);
    } catch {
      signal.throwIfAborted();
    } finally {
      stop.abort();
      signal.removeEventListener('abort', abort);
    }
  }

  kill(signal: NodeJS.Signals | number): void {
    if (this.#exit !== undefined) return;
    if (signal === 'SIGKILL' || signal === constants.signals.SIGKILL) this.#killed = true;
    this.spawned.kill(signal);
  }

  /** Drops the kept output. */
  dispose(): void {
    this.#replay.dispose();
    this.#wake();
  }

  async #follow(source: Readable, stderr: boolean): Promise<void> {
    source.on('data', (data: Buffer) => {
      // After the exit, the output of background children is read and dropped, so that they do not die of SIGPIPE.
      if (this.#exit !== undefined) return;
      this.#replay.push(stderr, data);
      if (this.#sink !== undefined && !this.#sink.write(stderr, data) && !this.#sinkFull) {
        this.#sinkFull = true;
        this.#sink.onDrain(() => {
          this.#sinkFull = false;
          this.#flow();
        });
      }
      this.#flow();
      this.#wake();
    });
    await new Promise<void>((resolve) => {
      source.once('close', resolve);
      source.once('end', resolve);
      source.once('error', () => resolve());
    });
  }

  async #finish(ended: Promise<unknown>): Promise<Exit> {
    const raw = await this.spawned.exited;
    const at = Date.now();
    this.#oomKills.count();
    const outOfMemory = raw.code === killedStatus && !this.#killed && this.#oomKills.claim();
    await this.#drained(ended);
    this.#exit = { ...raw, at, outOfMemory };
    this.#flow();
    this.#wake();
    return this.#exit;
  }

  /**
   * Resolves at the end of the output. While a background child holds the pipe open, the wait is bounded, with and without progress: the
   * output of the process itself is in the pipe when it ends. Time in which a reader is waited for does not count.
   */
  async #drained(ended: Promise<unknown>): Promise<void> {
    let over = false;
    const end = ended.then(() => {
      over = true;
    });
    let leftMs = maxOutputDrainMs;
    const endAt = this.#replay.end + maxOutputDrainBytes;
    for (let seen = -1; !over && this.#replay.end < endAt && (this.#paused || (seen !== this.#replay.end && leftMs > 0)); ) {
      seen = this.#replay.end;
      if (!this.#paused) leftMs -= outputDrainMs;
      let timer: NodeJS.Timeout | undefined;
      await Promise.race([end, new Promise<void>((resolve) => (timer = setTimeout(resolve, outputDrainMs)))]);
      clearTimeout(timer);
    }
  }

  #flow(): void {
    const lag = Math.max(0, ...[...this.#readers].map((reader) => this.#replay.end - reader.offset));
    const pause = this.#exit === undefined && (this.#sinkFull || lag > (this.#paused ? maxReaderLagBytes / 2 : maxReaderLagBytes));
    if (pause === this.#paused) return;
    this.#paused = pause;
    for (const source of this.#sources) {
      if (pause) source.pause();
      else source.resume();
    }
  }

  #changed(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        signal.removeEventListener('abort', wake);
        resolve();
      };
      signal.addEventListener('abort', wake, { once: true });
      this.#waiters.push(wake);
    });
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }
}
