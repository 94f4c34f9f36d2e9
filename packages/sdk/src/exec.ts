import { Writable, type Readable } from 'node:stream';
import { create } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import { DroverError, hasCode, newId } from '@drover/foundation';
import { api } from '@drover/protocol';
import { inputSettledMs } from '@drover/spec';
import type { Calls } from './calls.ts';
import { callWaitMs, execInputQueue, hostWaitMs, streamWaitMs } from './limits.ts';
import { Retry } from './retry.ts';
import { chunksOf, Handoff, OutputStream, report } from './streams.ts';

export interface TerminalSize {
  readonly rows: number;
  readonly columns: number;
}

export interface ExecOptions {
  /** Absent attaches to the process that has `execId`. */
  readonly argv?: readonly string[];
  /** `main` is the main process; generated when absent. */
  readonly execId?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly workdir?: string;
  readonly user?: string;
  readonly terminal?: boolean;
  readonly size?: TerminalSize;
  /** Keeps the process's stdin open for `ExecHandle.stdin`; otherwise the process reads an end immediately. */
  readonly stdin?: boolean;
  /**
   * Seconds without a client and without output after which the process is ended; 0: never. Default: an hour for a new process, unchanged
   * for a running one.
   */
  readonly lingerSeconds?: number;
  /** Output that was received before, bytes over both streams. */
  readonly afterOffset?: bigint;
  /** Begins with all retained output. */
  readonly replay?: boolean;
  /** Called each time the connection has broken, before the next attempt. */
  readonly onReconnect?: (error: Error) => void;
  /** Detaches: the process runs on (I-40). */
  readonly signal?: AbortSignal;
}

export interface ExecStarted {
  readonly execId: string;
  readonly pid: number;
  /** Bytes of output that the bounded buffer had dropped before this client attached. */
  readonly truncatedBytes: bigint;
}

export interface ExecExit {
  /** 0 to 255; 128 + n for signal n. */
  readonly code: number;
  /** `SIGKILL`, `SIGRTMIN+3`, …; empty when no signal ended it. */
  readonly signal: string;
  /** The kernel killed it, or its last child, because the sandbox had no memory left. */
  readonly outOfMemory: boolean;
}

/**
 * A process in a sandbox, and its streams. The process outlives the connection: after a break the handle attaches again automatically, at
 * the last byte that it received (I-40).
 *
 * Both `stdout` and `stderr` must be read or resumed: an unread stream blocks the process, as a full pipe does.
 */
export interface ExecHandle {
  readonly execId: string;
  /** Settles when the process runs and the streams are attached. */
  readonly started: Promise<ExecStarted>;
  readonly stdout: Readable;
  /** Empty with a terminal. */
  readonly stderr: Readable;
  /** `end()` ends the process's stdin. */
  readonly stdin: Writable;
  /** The exit status, after all output was delivered. Rejects with a DroverError. */
  readonly exit: Promise<ExecExit>;
  resize(size: TerminalSize): void;
  /** `SIGINT`, `SIGTERM`, … to the process's group. */
  kill(signal: string): void;
  /** Detaches; the process runs on. `exit` rejects with cancelled. */
  detach(): void;
}

/** Starts or attaches in the background; a failure rejects `started` and `exit`. */
export function startExec(client: Client<typeof api.SandboxService>, calls: Calls, sandbox: string, options: ExecOptions): ExecHandle {
  const exec = new Exec(client, calls, sandbox, options);
  void exec.run();
  return exec;
}

class Exec implements ExecHandle {
  readonly execId: string;
  readonly started: Promise<ExecStarted>;
  readonly exit: Promise<ExecExit>;
  readonly #out = new OutputStream();
  readonly #err = new OutputStream();
  readonly stdin: Writable;
  readonly #client: Client<typeof api.SandboxService>;
  readonly #calls: Calls;
  readonly #sandbox: string;
  readonly #options: ExecOptions;
  readonly #life = new AbortController();
  readonly #started = Promise.withResolvers<ExecStarted>();
  readonly #exit = Promise.withResolvers<ExecExit>();
  readonly #input = new Handoff<api.ExecRequest>(execInputQueue);
  #isStarted = false;
  /** Output that was delivered, bytes over both streams. */
  #seen: bigint;
  #size: TerminalSize | undefined;
  #inputAt = Number.NEGATIVE_INFINITY;
  #inputEnded = false;

  constructor(client: Client<typeof api.SandboxService>, calls: Calls, sandbox: string, options: ExecOptions) {
    this.#client = client;
    this.#calls = calls;
    this.#sandbox = sandbox;
    this.#options = options;
    this.execId = options.execId ?? newId('exec');
    this.#seen = options.replay === true ? 0n : (options.afterOffset ?? 0n);
    this.#size = options.size;
    this.started = this.#started.promise;
    this.exit = this.#exit.promise;
    // A caller may await only one of the two.
    this.started.catch(() => undefined);
    this.exit.catch(() => undefined);
    this.stdin = new Writable({
      highWaterMark: 64 * 1024,
      write: (chunk: Buffer, _encoding, done) => void report(this.#send(chunk), done),
      final: (done) => void report(this.#input.offer(message({ case: 'stdinEof', value: true })), done),
    });
    // Input after the end of the process is dropped; `exit` reports the end.
    this.stdin.on('error', () => undefined);
    if (options.stdin !== true) this.stdin.destroy();
    const { signal } = options;
    if (signal?.aborted === true) this.detach();
    signal?.addEventListener('abort', this.detach, { once: true, signal: this.#life.signal });
  }

  get stdout(): Readable {
    return this.#out;
  }

  get stderr(): Readable {
    return this.#err;
  }

  resize(size: TerminalSize): void {
    this.#size = size;
    this.#input.replace('resize', message({ case: 'resize', value: create(api.TerminalSizeSchema, size) }));
  }

  kill(signal: string): void {
    void this.#input.offer(message({ case: 'signal', value: signal }));
  }

  readonly detach = (): void => {
    this.#life.abort(new DroverError('cancelled', 'detached; the process runs on'));
  };

  async run(): Promise<void> {
    try {
      this.#exit.resolve(await this.#untilExit());
    } catch (error) {
      this.#started.reject(error);
      this.#exit.reject(error);
    } finally {
      this.#out.push(null);
      this.#err.push(null);
      this.#input.close();
      this.stdin.destroy();
      this.#life.abort();
    }
  }

  async #untilExit(): Promise<ExecExit> {
    const { signal } = this.#life;
    const before = new Retry(this.#calls.clock, { controlPlaneMs: callWaitMs });
    const attached = new Retry(this.#calls.clock, { controlPlaneMs: streamWaitMs, hostMs: hostWaitMs });
    for (;;) {
      try {
        const exit = await this.#attempt(() => {
          before.succeeded();
          attached.succeeded();
        });
        if (exit !== undefined) return exit;
        throw new DroverError('control-plane-unreachable', `${this.#calls.server} ended the stream before the process ended`);
      } catch (thrown) {
        signal.throwIfAborted();
        const error = this.#calls.error(thrown);
        const isBroken = hasCode(error, 'control-plane-unreachable', 'unavailable', 'host-unavailable');
        if (isBroken) this.#refuseLostInput(error);
        // L-15: a process that has not started does not wait for a host.
        if (this.#isStarted) await attached.pause(error, signal, this.#options.onReconnect);
        else await this.#pauseBefore(before, error);
      }
    }
  }

  async #pauseBefore(retry: Retry, broken: DroverError): Promise<void> {
    try {
      await retry.pause(broken, this.#life.signal, this.#options.onReconnect);
    } catch (error) {
      // Attaching changes nothing.
      throw this.#options.argv === undefined ? error : retry.withDoubt(error, `whether ${this.execId} was started`);
    }
  }

  async #attempt(onAnswer: () => void): Promise<ExecExit | undefined> {
    const attempt = new AbortController();
    const signal = AbortSignal.any([this.#life.signal, attempt.signal]);
    try {
      for await (const { payload } of this.#client.exec(this.#requests(signal), { signal })) {
        onAnswer();
        if (payload.case === 'started') {
          const { execId, pid, truncatedBytes } = payload.value;
          this.#isStarted = true;
          this.#started.resolve({ execId, pid, truncatedBytes });
        } else if (payload.case === 'output') {
          await this.#take(payload.value);
        } else if (payload.case === 'exit') {
          this.#started.resolve({ execId: this.execId, pid: 0, truncatedBytes: 0n });
          const { code, signal: name, outOfMemory } = payload.value;
          return { code, signal: name, outOfMemory };
        }
      }
      return undefined;
    } finally {
      attempt.abort();
    }
  }

  async #take({ stderr, data, offset }: api.ExecOutput): Promise<void> {
    const end = offset + BigInt(data.byteLength);
    if (end <= this.#seen) return;
    const fresh = offset < this.#seen ? data.subarray(Number(this.#seen - offset)) : data;
    this.#seen = end;
    await (stderr ? this.#err : this.#out).accept(fresh, this.#life.signal);
  }

  async *#requests(signal: AbortSignal): AsyncGenerator<api.ExecRequest> {
    const { argv = [], env = {}, workdir = '', user = '', terminal = false, stdin = false, replay = false } = this.#options;
    yield message({
      case: 'open',
      value: create(api.ExecOpenSchema, {
        sandbox: this.#sandbox,
        execId: this.execId,
        // Once started, a repeated open attaches after the received output.
        argv: this.#isStarted ? [] : [...argv],
        env: Object.entries(env).map(([name, value]) => ({ name, value })),
        workdir,
        user,
        terminal,
        stdin,
        ...(this.#options.lingerSeconds !== undefined && { lingerSeconds: this.#options.lingerSeconds }),
        replay: replay && !this.#isStarted,
        afterOffset: this.#seen,
        ...(this.#size === undefined ? {} : { size: create(api.TerminalSizeSchema, this.#size) }),
      }),
    });
    // The end may have been lost with the connection; a second one has no effect.
    if (this.#inputEnded) yield message({ case: 'stdinEof', value: true });
    for await (const next of this.#input.items(signal)) {
      if (next.payload.case === 'stdin') this.#inputAt = this.#calls.clock.now();
      if (next.payload.case === 'stdinEof') this.#inputEnded = true;
      yield next;
    }
  }

  async #send(bytes: Uint8Array): Promise<void> {
    for (const chunk of chunksOf(bytes)) await this.#input.offer(message({ case: 'stdin', value: chunk }));
  }

  /** Input in flight may be lost. A person at a terminal notices and repeats it; a pipe does not. */
  #refuseLostInput(error: DroverError): void {
    if (this.#options.terminal === true || this.#calls.clock.now() - this.#inputAt > inputSettledMs) return;
    // Not control-plane-unreachable: a repeated call would not restore the input.
    throw new DroverError(
      'session-unavailable',
      `the connection broke while input was being sent, and some of it may be lost: ${error.message}`,
      {
        hint: `the process runs on as ${this.execId}; look at what it has read before sending more`,
        cause: error,
      },
    );
  }
}

function message(payload: api.ExecRequest['payload']): api.ExecRequest {
  return create(api.ExecRequestSchema, { payload });
}
