import { duplexPair, PassThrough, Readable, type Duplex } from 'node:stream';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { createClient, createRouterTransport, type ServiceImpl } from '@connectrpc/connect';
import { DroverError, type HostId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { init, link, writeHostStream } from '@drover/protocol';
import { publicErrorToWire } from '@drover/protocol/rpc';
import type { CallOptions, HostStreamSource, Hub, HubListener, Operation, ResultValue } from '../../hub/hub.ts';
import type { InitClient, Sessions, SessionStatus } from '../../sessions/index.ts';

type Answer = (operation: Operation, options: CallOptions) => Promise<ResultValue> | ResultValue;

/** Hosts in memory, each answering commands as its test says. */
export class FakeHub implements Hub {
  readonly hosts = new Map<HostId, Answer>();
  readonly disconnected: { readonly hostId: HostId; readonly reason: link.GoAway_Reason }[] = [];

  isConnected(hostId: HostId): boolean {
    return this.hosts.has(hostId);
  }

  async call(hostId: HostId, operation: Operation, options: CallOptions = {}): Promise<ResultValue> {
    const answer = this.hosts.get(hostId);
    if (answer === undefined) throw new DroverError('host-unavailable', `host ${hostId} is not connected`);
    return await answer(operation, options);
  }

  async openTunnel(): Promise<Duplex> {
    return await Promise.resolve(new PassThrough());
  }

  /** What hosts keep of their sandboxes. */
  readonly logs = new Map<HostId, readonly MessageInitShape<typeof link.LogRecordSchema>[]>();
  readonly opened: HostStreamSource[] = [];

  async openHostStream(hostId: HostId, _sandboxId: SandboxId, source: HostStreamSource): Promise<Duplex> {
    const records = this.logs.get(hostId);
    if (records === undefined) throw new DroverError('host-unavailable', `host ${hostId} is not connected`);
    this.opened.push(source);
    const [near, far] = duplexPair();
    const messages = records.map((value) => ({ message: { case: 'log' as const, value } }));
    void writeHostStream(Readable.from(messages), far, (error) => publicErrorToWire(error, silentLogger));
    return await Promise.resolve(near);
  }

  disconnect(hostId: HostId, reason: link.GoAway_Reason): void {
    this.disconnected.push({ hostId, reason });
    this.hosts.delete(hostId);
  }

  on(_listener: HubListener): () => void {
    return () => undefined;
  }

  stats(): { readonly hosts: number; readonly pendingCommands: number } {
    return { hosts: this.hosts.size, pendingCommands: 0 };
  }
}

/** Sessions whose far end is an init written by the test. */
export class FakeSessions implements Sessions {
  /** Those that were to be greeted anew, in order. */
  readonly redialled: SandboxId[] = [];
  /** What a caller gets; throws what `client` should throw. */
  connect: (id: SandboxId, signal: AbortSignal) => Promise<InitClient> = () =>
    Promise.reject(new DroverError('session-unavailable', 'no session in this test'));

  /** Every sandbox has this init. */
  serve(implementation: Partial<ServiceImpl<typeof init.InitService>>): void {
    const transport = createRouterTransport(({ service }) => void service(init.InitService, implementation));
    const client = createClient(init.InitService, transport);
    this.connect = () => Promise.resolve(client);
  }

  dial(): void {
    // Nothing is dialled here: `connect` answers.
  }

  close(): void {
    // Nothing is open.
  }

  redial(id: SandboxId): void {
    this.redialled.push(id);
  }

  status(): SessionStatus {
    return { state: 'none', since: 0, attempts: 0, lastError: '' };
  }

  async client(sandboxId: SandboxId, signal: AbortSignal): Promise<InitClient> {
    return await this.connect(sandboxId, signal);
  }

  async closeAll(): Promise<void> {
    await Promise.resolve();
  }
}

/**
 * A process as init keeps it: output in one buffer with offsets, attachable again, cut at will.
 */
export class FakeProcess {
  readonly #chunks: { readonly stderr: boolean; readonly data: Uint8Array; readonly offset: bigint }[] = [];
  readonly #wakes = new Set<() => void>();
  #offset = 0n;
  #exit: { readonly code: number; readonly signal: string } | undefined;
  #cut: Error | undefined;
  /** Every ExecStart and ExecAttach that came. */
  readonly opened: (init.ExecStart | init.ExecAttach)[] = [];
  readonly input: Uint8Array[] = [];
  readonly resized: init.Resize[] = [];
  readonly signals: string[] = [];
  inputEnded = false;

  write(text: string, stderr = false): void {
    const data = Buffer.from(text);
    this.#chunks.push({ stderr, data, offset: this.#offset });
    this.#offset += BigInt(data.byteLength);
    this.#wake();
  }

  exit(code: number, signal = ''): void {
    this.#exit = { code, signal };
    this.#wake();
  }

  /** Breaks every stream that stands. */
  cut(error: Error): void {
    this.#cut = error;
    this.#wake();
  }

  readonly exec: ServiceImpl<typeof init.InitService>['exec'] = (requests, { signal }) => this.#serve(requests, signal);

  async *#serve(requests: AsyncIterable<init.ExecRequest>, signal: AbortSignal): AsyncGenerator<init.ExecResponse> {
    const iterator = requests[Symbol.asyncIterator]();
    const { value: first } = (await iterator.next()) as { value: init.ExecRequest };
    if (first.payload.case !== 'start' && first.payload.case !== 'attach') throw new Error('the first message opens');
    this.opened.push(first.payload.value);
    this.#cut = undefined;
    this.#wake();
    void this.#take(iterator).catch(() => undefined);
    const started = create(init.ExecStartedSchema, { execId: first.payload.value.execId, pid: 42 });
    yield create(init.ExecResponseSchema, { payload: { case: 'started', value: started } });
    const from = first.payload.case === 'attach' && !first.payload.value.replay ? first.payload.value.afterOffset : 0n;
    for (let next = 0; ; ) {
      if (this.#cut !== undefined) throw this.#cut;
      const chunk = this.#chunks[next];
      if (chunk !== undefined) {
        next++;
        const end = chunk.offset + BigInt(chunk.data.byteLength);
        if (end <= from) continue;
        const skip = from > chunk.offset ? Number(from - chunk.offset) : 0;
        const value = create(init.ExecOutputSchema, {
          stderr: chunk.stderr,
          data: chunk.data.subarray(skip),
          offset: chunk.offset + BigInt(skip),
        });
        yield create(init.ExecResponseSchema, { payload: { case: 'output', value } });
        continue;
      }
      if (this.#exit !== undefined) {
        yield create(init.ExecResponseSchema, { payload: { case: 'exit', value: create(init.ExitStatusSchema, this.#exit) } });
        return;
      }
      if (signal.aborted) return;
      await new Promise<void>((resolve) => {
        this.#wakes.add(resolve);
        signal.addEventListener('abort', () => resolve(), { once: true });
      });
    }
  }

  async #take(iterator: AsyncIterator<init.ExecRequest>): Promise<void> {
    for (;;) {
      const { value, done } = await iterator.next();
      if (done === true) return;
      const { payload } = value;
      if (payload.case === 'stdin') this.input.push(payload.value);
      if (payload.case === 'stdinEof') this.inputEnded = true;
      if (payload.case === 'resize') this.resized.push(payload.value);
      if (payload.case === 'signal') this.signals.push(payload.value);
      this.#wake();
    }
  }

  /** Resolves when `check` holds, looking again after everything that comes. */
  async until(check: () => boolean): Promise<void> {
    while (!check()) await new Promise<void>((resolve) => this.#wakes.add(resolve));
  }

  #wake(): void {
    const wakes = [...this.#wakes];
    this.#wakes.clear();
    for (const wake of wakes) wake();
  }
}
