import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { Backoff, DroverError, hasCode, newId } from '@drover/foundation';
import { api, init } from '@drover/protocol';
import { fromConnectError } from '@drover/protocol/rpc';
import { inputSettledMs, maxLingerSeconds, parseArguments, parseEnvironment, parseExecId, parseUser, parseWorkdir } from '@drover/spec';
import { defaultLingerSeconds, initAnswerMs, reattachBaseMs, reattachCapMs, reattachMs } from '../../limits.ts';
import { type SandboxRow, sandboxState } from '../../model/index.ts';
import { type ApiContext, StreamInput } from '../edge/index.ts';
import {
  hasEnded,
  refusePaused,
  replayMain,
  connectionBroke,
  peerIsForeign,
  brokenCallError,
  foreignPeerError,
  refuseDownHost,
  sessionClient,
  inTime,
  silentError,
} from '../reach/index.ts';

/** The id of a sandbox's main process. */
const mainId = 'main';

/**
 * Carries a process's streams between the caller and init. The process outlives the stream: after a break of the session this attaches again
 * by the process's id, after the last byte that the caller has received, so that the caller sees no gap (I-40).
 */
export function execMethod(context: ApiContext): ServiceImpl<typeof api.SandboxService>['exec'] {
  return async function* exec(requests, { signal }) {
    const input = new StreamInput(requests);
    const first = await input.first(signal);
    if (first.payload.case !== 'open') throw new DroverError('protocol-violation', 'the first message of an exec must be open');
    const open = parseOpen(first.payload.value);
    const row = await context.store.sandboxes.find(open.sandbox);
    // A caller may attach to a running process, which continues when the sandbox is resumed.
    if (open.argv.length > 0) refusePaused(row);
    yield* new ExecRelay(context, row, open, input, signal).run();
  };
}

function parseOpen(open: api.ExecOpen): api.ExecOpen {
  if (open.execId !== '') parseExecId(open.execId);
  parseArguments('command', open.argv);
  parseEnvironment(open.env);
  parseWorkdir(open.workdir);
  parseUser(open.user);
  if ((open.lingerSeconds ?? 0) > maxLingerSeconds) {
    throw new DroverError('invalid-argument', `an exec cannot linger for ${open.lingerSeconds} s`, {
      hint: `use at most ${maxLingerSeconds} s, or 0 for as long as it runs`,
    });
  }
  if (open.argv.length === 0 && open.execId === '') {
    throw new DroverError('invalid-argument', 'there is no command to run', {
      hint: 'give a command, or the id of a process to attach to',
    });
  }
  if (open.argv.length > 0 && open.execId === mainId) {
    throw new DroverError('invalid-argument', 'the main process already has a command', {
      hint: 'omit the command to attach to it',
    });
  }
  if (open.execId === '') open.execId = newId('exec');
  return open;
}

class ExecRelay {
  readonly #context: ApiContext;
  readonly #row: SandboxRow;
  readonly #open: api.ExecOpen;
  readonly #input: StreamInput<api.ExecRequest>;
  readonly #signal: AbortSignal;
  /** Output that the caller has received, bytes over both streams. */
  #seen: bigint;
  #started = false;
  /** The start of the sandbox to which the process belongs. */
  #startCount: number | undefined;
  #inputAt = Number.NEGATIVE_INFINITY;
  #inputEnded = false;
  /** The time that init has left the exec without a response, over all attempts that reached it. Milliseconds. */
  #silentMs = 0;

  constructor(context: ApiContext, row: SandboxRow, open: api.ExecOpen, input: StreamInput<api.ExecRequest>, signal: AbortSignal) {
    this.#context = context;
    this.#row = row;
    this.#open = open;
    this.#input = input;
    this.#signal = signal;
    this.#seen = open.replay ? 0n : open.afterOffset;
  }

  async *run(): AsyncGenerator<api.ExecResponse> {
    const { clock } = this.#context;
    const backoff = new Backoff({ baseMs: reattachBaseMs, capMs: reattachCapMs });
    let brokenSince: number | undefined;
    for (;;) {
      let error: DroverError;
      let broke = true;
      try {
        for await (const response of this.#attempt()) {
          brokenSince = undefined;
          backoff.reset();
          yield response;
          if (response.payload.case === 'exit') return;
        }
        error = new DroverError('session-unavailable', 'the session ended before the process did');
      } catch (thrown) {
        const foreign = peerIsForeign(thrown);
        error = foreign ? foreignPeerError(this.#row, thrown) : fromConnectError(thrown);
        broke = !foreign && connectionBroke(thrown);
      }
      this.#signal.throwIfAborted();
      if (hasCode(error, 'sandbox-not-running') || (await this.#hasEnded())) {
        if (this.#open.execId !== mainId) throw hasCode(error, 'sandbox-not-running') ? error : await this.#notRunning();
        yield* replayMain(this.#context, this.#row.id, this.#seen, this.#started, this.#signal);
        return;
      }
      if (!broke) throw error;
      this.#refuseLostInput(error);
      await refuseDownHost(this.#context, this.#row);
      brokenSince ??= clock.now();
      if (clock.now() - brokenSince > reattachMs) throw await brokenCallError(this.#context, this.#row, error);
      this.#context.logger.info({ sandbox: this.#row.id, exec: this.#open.execId, err: error }, 'attaching an exec again');
      await clock.sleep(backoff.nextMs(), this.#signal);
    }
  }

  /** A caller may attach to the main process before init has started it; any other exec begins immediately. */
  async #mustRespond(): Promise<boolean> {
    if (this.#open.execId !== mainId) return true;
    const view = (await this.#context.store.views.get([this.#row.id])).get(this.#row.id);
    return view?.init.state === 'completed' && view.init.startCount === this.#startCount;
  }

  /** One call to init, from the start of the process or from the last received byte. */
  async *#attempt(): AsyncGenerator<api.ExecResponse> {
    const { clock } = this.#context;
    const attempt = new AbortController();
    const signal = AbortSignal.any([this.#signal, attempt.signal]);
    try {
      const client = await sessionClient(this.#context, this.#row, signal);
      await this.#checkSameStart();
      const limitMs = (await this.#mustRespond()) ? initAnswerMs - this.#silentMs : undefined;
      const late = (): DroverError => silentError(this.#row, 'exec', initAnswerMs);
      const responses = client.exec(this.#requests(signal), { signal });
      // The time until the first response counts, also when the connection breaks before.
      let silentSince: number | undefined = clock.now();
      using _counted = { [Symbol.dispose]: () => (this.#silentMs += silentSince === undefined ? 0 : clock.now() - silentSince) };
      for await (const response of inTime(responses, clock, (received) => (received === 0 ? limitMs : undefined), late)) {
        silentSince = undefined;
        this.#silentMs = 0;
        const mapped = this.#toCaller(response);
        if (mapped !== undefined) yield mapped;
      }
    } finally {
      attempt.abort();
    }
  }

  async *#requests(signal: AbortSignal): AsyncGenerator<init.ExecRequest> {
    yield this.#begin();
    // The end of the input may have been lost with the session; a second one has no effect.
    if (this.#inputEnded) yield create(init.ExecRequestSchema, { payload: { case: 'stdinEof', value: true } });
    for (;;) {
      let message: api.ExecRequest | undefined;
      try {
        message = await this.#input.next(signal);
      } catch (error) {
        // The attempt has ended: the next attempt gets the message.
        if (signal.aborted) return;
        throw error;
      }
      if (message === undefined) return;
      const mapped = toInit(message);
      if (mapped.payload.case === 'stdin') this.#inputAt = this.#context.clock.now();
      if (mapped.payload.case === 'stdinEof') this.#inputEnded = true;
      yield mapped;
    }
  }

  #begin(): init.ExecRequest {
    const open = this.#open;
    const size = open.size === undefined ? {} : { size: create(init.ResizeSchema, { rows: open.size.rows, columns: open.size.columns }) };
    if (open.argv.length > 0 && !this.#started) {
      // Repeated after a break, it attaches: init knows the id.
      const value = create(init.ExecStartSchema, {
        execId: open.execId,
        argv: open.argv,
        env: open.env.map(({ name, value: text }) => `${name}=${text}`),
        workdir: open.workdir,
        user: open.user,
        terminal: open.terminal,
        stdin: open.stdin,
        lingerMs: (open.lingerSeconds ?? defaultLingerSeconds) * 1000,
        ...size,
      });
      return create(init.ExecRequestSchema, { payload: { case: 'start', value } });
    }
    const value = create(init.ExecAttachSchema, {
      execId: open.execId,
      afterOffset: this.#seen,
      replay: open.replay && !this.#started,
      ...(open.lingerSeconds !== undefined && { lingerMs: open.lingerSeconds * 1000 }),
      ...size,
    });
    return create(init.ExecRequestSchema, { payload: { case: 'attach', value } });
  }

  #toCaller(response: init.ExecResponse): api.ExecResponse | undefined {
    const { payload } = response;
    switch (payload.case) {
      case 'started': {
        const again = this.#started;
        this.#started = true;
        if (again && payload.value.truncatedBytes === 0n) return undefined;
        const { execId, pid, truncatedBytes } = payload.value;
        return create(api.ExecResponseSchema, {
          payload: { case: 'started', value: create(api.ExecStartedSchema, { execId, pid, truncatedBytes }) },
        });
      }
      case 'output': {
        const { stderr, data, offset } = payload.value;
        const end = offset + BigInt(data.byteLength);
        // A repeated start replays the output from its beginning: the caller receives the part that it lacks.
        const known = this.#seen - offset;
        if (end <= this.#seen && known > 0n) return undefined;
        const fresh = known > 0n ? data.subarray(Number(known)) : data;
        if (end > this.#seen) this.#seen = end;
        return create(api.ExecResponseSchema, {
          payload: {
            case: 'output',
            value: create(api.ExecOutputSchema, { stderr, data: fresh, offset: known > 0n ? offset + known : offset }),
          },
        });
      }
      case 'exit':
        return create(api.ExecResponseSchema, {
          payload: { case: 'exit', value: exitToCaller(payload.value) },
        });
      case undefined:
        break;
    }
    return undefined;
  }

  /** Offsets and ids belong to one start of the sandbox. @throws {DroverError} exec-not-found */
  async #checkSameStart(): Promise<void> {
    const row = await this.#context.store.sandboxes.get(this.#row.id);
    if (this.#started && row !== undefined && this.#startCount !== undefined && row.startCount > this.#startCount) {
      throw new DroverError('exec-not-found', 'the process ended when its sandbox was started again');
    }
    this.#startCount ??= row?.startCount;
  }

  async #hasEnded(): Promise<boolean> {
    const row = await this.#context.store.sandboxes.get(this.#row.id);
    return row === undefined || hasEnded(row);
  }

  async #notRunning(): Promise<DroverError> {
    const row = await this.#context.store.sandboxes.get(this.#row.id);
    const state = row === undefined ? 'deleted' : sandboxState(row).state;
    return new DroverError('sandbox-not-running', `the process ended with its sandbox, which is ${state}`);
  }

  /** Input in flight may be lost with the session. A person at a terminal notices and repeats it; a pipe does not. */
  #refuseLostInput(error: DroverError): void {
    if (this.#open.terminal || this.#context.clock.now() - this.#inputAt > inputSettledMs) return;
    throw new DroverError(
      'session-unavailable',
      `the session broke while input was being sent, and some of it may be lost: ${error.message}`,
      {
        hint: 'the process runs on; check what it has read before you send more',
        cause: error,
      },
    );
  }
}

function exitToCaller({ code, signal, outOfMemory }: init.ExitStatus): api.ExecExit {
  return create(api.ExecExitSchema, { code, signal, outOfMemory });
}

function toInit(message: api.ExecRequest): init.ExecRequest {
  const { payload } = message;
  switch (payload.case) {
    case 'stdin':
      return create(init.ExecRequestSchema, { payload: { case: 'stdin', value: payload.value } });
    case 'stdinEof':
      return create(init.ExecRequestSchema, { payload: { case: 'stdinEof', value: true } });
    case 'resize':
      return create(init.ExecRequestSchema, {
        payload: { case: 'resize', value: create(init.ResizeSchema, { rows: payload.value.rows, columns: payload.value.columns }) },
      });
    case 'signal':
      return create(init.ExecRequestSchema, { payload: { case: 'signal', value: payload.value } });
    case 'open':
    case undefined:
      break;
  }
  throw new DroverError('protocol-violation', 'a message of an exec must be stdin, its end, a resize or a signal');
}
