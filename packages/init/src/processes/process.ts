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
  /** The kernel killed it, or a child whose status it passed on, because the sandbox had no memory left. */
  readonly outOfMemory: boolean;
}

/** What the processes of a sandbox share. */
export interface Shared {
  readonly replay: ReplayBudget;
  readonly oomKills: OomKills;
}

/** 128 + SIGKILL: the status of a process that was killed, and of a shell whose last command was. */
const killedStatus = 137;

/** Where a process's output goes besides those attached; says whether it takes more now. */
export interface OutputSink {
  write(stderr: boolean, data: Buffer): boolean;
  /** Calls back once it takes more again. */
  onDrain(callback: () => void): void;
}

/**
 * A process with its output kept and shared: any number of readers, each at its own offset, each able to come back (I-40).
 * Output is read no faster than the slowest attached reader and the sink take it; with nobody attached it is read and the oldest dropped.
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

  /** Clients that read its output now. */
  get readers(): number {
    return this.#readers.size;
  }

  /** How often a client began to. */
  get attachments(): number {
    return this.#attachments;
  }

  get exit(): Exit | undefined {
    return this.#exit;
  }

  /** Output bytes lost to one who has seen `offset`. */
  truncatedAfter(offset: number): number {
    return Math.max(0, this.#replay.start - offset);
  }

  get outputStart(): number {
    return this.#replay.start;
  }

  get outputEnd(): number {
    return this.#replay.end;
  }

  /** Output from `offset` on, until the process has ended and all of it was read. `signal` detaches; the process runs on. */
  async *output(offset: number, signal: AbortSignal): AsyncGenerator<OutputChunk, void, undefined> {
    const reader = { offset: Math.min(offset, this.#replay.end) };
    this.#readers.add(reader);
    this.#attachments++;
    try {
      while (!signal.aborted) {
        const chunk = this.#replay.read(reader.offset);
        if (chunk !== undefined) {
          yield chunk;
          // Only now: what is being sent still counts as behind.
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

  /** Resolves when the process takes more (I-39); when it reads no more, at once. */
  async write(data: Uint8Array, signal: AbortSignal): Promise<void> {
    const stdin = this.spawned.stdin;
    if (stdin === undefined || !stdin.writable) return;
    if (stdin.write(data)) return;
    const stop = new AbortController();
    const abort = (): void => stop.abort();
    signal.addEventListener('abort', abort, { once: true });
    try {
      // Whatever comes first: room, the end of the process, or of the caller.
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

  /** Gives up what is kept. */
  dispose(): void {
    this.#replay.dispose();
    this.#wake();
  }

  async #follow(source: Readable, stderr: boolean): Promise<void> {
    source.on('data', (data: Buffer) => {
      // After the exit was told, leftovers of background children are read, so that they do not die of SIGPIPE, and dropped.
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
   * The end of the output; or, when a background child holds the pipe open, a bounded wait without progress, and a bounded one with it: what
   * the process itself wrote is in the pipe when it ends. While a reader is waited for the time does not count.
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
