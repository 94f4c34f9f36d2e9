import { Duplex } from 'node:stream';
import { create } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import { api } from '@drover/protocol';
import type { Calls } from './calls.ts';
import { chunkBytes, execInputQueue } from './limits.ts';
import { chunksOf, Handoff, report } from './streams.ts';

export interface ForwardOptions {
  readonly signal?: AbortSignal;
}

/**
 * One connection to a TCP port in a sandbox, as a stream of bytes. Its directions end separately, as with a half-open socket: `end()` ends
 * what the program in the sandbox receives, and `end` is emitted after the last byte that the program has sent.
 */
export function openForward(
  client: Client<typeof api.SandboxService>,
  calls: Calls,
  sandbox: string,
  port: number,
  options: ForwardOptions = {},
): Duplex {
  return new Forward(client, calls, sandbox, port, options.signal);
}

class Forward extends Duplex {
  readonly #input = new Handoff<Uint8Array>(execInputQueue);
  readonly #life = new AbortController();
  #resume: (() => void) | undefined;
  #outputEnded = false;

  constructor(client: Client<typeof api.SandboxService>, calls: Calls, sandbox: string, port: number, signal: AbortSignal | undefined) {
    super({ allowHalfOpen: true, readableHighWaterMark: 4 * chunkBytes, writableHighWaterMark: chunkBytes });
    if (signal !== undefined) {
      if (signal.aborted) this.destroy(calls.error(signal.reason));
      signal.addEventListener('abort', () => this.destroy(calls.error(signal.reason)), { once: true, signal: this.#life.signal });
    }
    void this.#run(client, sandbox, port).catch((error: unknown) => this.destroy(calls.error(error)));
  }

  async #run(client: Client<typeof api.SandboxService>, sandbox: string, port: number): Promise<void> {
    const { signal } = this.#life;
    for await (const { payload } of client.forward(this.#requests(sandbox, port), { signal })) {
      if (payload.case === 'eof') this.#endOutput();
      if (payload.case !== 'data' || this.push(payload.value) || this.destroyed) continue;
      await new Promise<void>((resolve) => {
        this.#resume = resolve;
      });
    }
    this.#endOutput();
    // The call has ended in both directions: later writes are dropped, as on a closed socket.
    this.#input.close();
    this.end();
  }

  #endOutput(): void {
    if (!this.#outputEnded && !this.destroyed) this.push(null);
    this.#outputEnded = true;
  }

  async *#requests(sandbox: string, port: number): AsyncGenerator<api.ForwardFrame> {
    yield create(api.ForwardFrameSchema, { payload: { case: 'target', value: create(api.ForwardTargetSchema, { sandbox, port }) } });
    for await (const bytes of this.#input.items(this.#life.signal)) {
      yield create(api.ForwardFrameSchema, { payload: { case: 'data', value: bytes } });
    }
  }

  override _read(): void {
    this.#resume?.();
    this.#resume = undefined;
  }

  override _write(bytes: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    void report(this.#offer(bytes), done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#input.end();
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#life.abort();
    this.#input.close();
    this.#resume?.();
    done(error);
  }

  async #offer(bytes: Uint8Array): Promise<void> {
    for (const chunk of chunksOf(bytes)) await this.#input.offer(chunk);
  }
}
