import { constants, performServerHandshake, type IncomingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { Duplex } from 'node:stream';
import type { MessageInitShape, MessageShape } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import type { init } from '@drover/protocol';
import { lingerMs, maxConcurrentCalls } from '../limits.ts';
import { decode, encode } from '../wire/codec.ts';
import { schema } from '../wire/schema.ts';
import { Deframer, frame } from './framing.ts';

/**
 * One call: what the client sends, what goes back, and how long it lives.
 * This is gRPC over HTTP/2 as its specification has it, on node:http2 and nothing else: PID 1 of every sandbox
 * pays for each library in memory and in start-up time.
 */
export interface Call<I, O> {
  readonly requests: AsyncIterable<I>;
  /** Resolves when the connection takes more: awaiting it is the backpressure (I-39). Rejects with cancelled when the client is gone. */
  send(response: O): Promise<void>;
  /** Aborts when the client cancels or the connection is lost. */
  readonly signal: AbortSignal;
}

type Methods = (typeof init.InitService)['method'];
/** What a method sends. */
export type Reply<K extends keyof Methods> = MessageInitShape<Methods[K]['output']>;
type Handler = (call: Call<never, never>) => Promise<void>;
export interface Method {
  readonly name: string;
  readonly handler: Handler;
}

/** A method of InitService by its property in the generated code; what it sends may leave out what is empty. */
export function method<K extends keyof Methods>(
  name: K,
  handler: (call: Call<MessageShape<Methods[K]['input']>, Reply<K>>) => Promise<void>,
): Method {
  return { name: name.charAt(0).toUpperCase() + name.slice(1), handler };
}

export class GrpcServer {
  readonly #methods = new Map<string, Method>();
  readonly #sessions = new Set<ServerHttp2Session>();
  readonly #onCall: () => void;

  /** @param onCall called at the start and the end of every call */
  constructor(methods: readonly Method[], onCall: () => void = () => undefined) {
    for (const entry of methods) this.#methods.set(`/${schema.service}/${entry.name}`, entry);
    this.#onCall = onCall;
  }

  /** Serves one connection until it ends. */
  accept(socket: Duplex): void {
    const session = performServerHandshake(socket, {
      settings: { maxConcurrentStreams: maxConcurrentCalls, enablePush: false },
    });
    this.#sessions.add(session);
    session.on('close', () => this.#sessions.delete(session));
    // A broken connection shows in each call's signal; here it only must not crash PID 1.
    session.on('error', () => undefined);
    session.on('stream', (stream, headers) => void this.#serve(stream, headers));
  }

  /** Lets calls that are ending end, then closes; at most `ms`. */
  async close(ms: number): Promise<void> {
    const closed = [...this.#sessions].map(
      (session) =>
        new Promise<void>((resolve) => {
          session.once('close', resolve);
          session.close();
        }),
    );
    let timer: NodeJS.Timeout | undefined;
    const timeout = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, ms);
    });
    await Promise.race([Promise.all(closed), timeout]);
    clearTimeout(timer);
    for (const session of this.#sessions) session.destroy();
  }

  async #serve(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): Promise<void> {
    stream.on('error', () => undefined);
    const gone = new AbortController();
    stream.on('close', () => {
      if (!gone.signal.aborted) gone.abort(new DroverError('cancelled', 'the call was cancelled'));
      this.#onCall();
    });
    this.#onCall();
    stream.respond({ ':status': 200, 'content-type': 'application/grpc+proto' }, { waitForTrailers: true });
    let failure: unknown;
    try {
      const entry = this.#methods.get(headers[':path'] ?? '');
      if (entry === undefined) throw new DroverError('unimplemented', `there is no method ${String(headers[':path']).slice(0, 100)}`);
      await entry.handler(this.#call(stream, entry.name, gone.signal));
    } catch (error) {
      failure = error;
    }
    if (stream.closed || stream.destroyed) return;
    stream.on('wantTrailers', () => stream.sendTrailers(trailers(failure)));
    stream.end();
    // The client may still be sending, and is told that it need not (RFC 9113, section 8.1); a moment later, since clients take a reset
    // that comes with the answer for a failure of the call.
    const timer = setTimeout(() => stream.close(constants.NGHTTP2_NO_ERROR), lingerMs);
    stream.once('close', () => clearTimeout(timer));
    stream.resume();
  }

  #call(stream: ServerHttp2Stream, name: string, signal: AbortSignal): Call<never, never> {
    const { input, output } = schema.methods[name] ?? { input: '', output: '' };
    const call: Call<unknown, object> = {
      requests: requests(stream, input),
      send: async (response) => {
        signal.throwIfAborted();
        if (!stream.write(frame(encode(schema, output, response)))) await drained(stream, signal);
      },
      signal,
    };
    return call as unknown as Call<never, never>;
  }
}

async function* requests(stream: ServerHttp2Stream, input: string): AsyncGenerator<unknown, void, undefined> {
  const deframer = new Deframer();
  // Leaving the loop early must not destroy the stream: the answer is still to come.
  for await (const chunk of stream.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    for (const message of deframer.push(chunk)) yield decode(schema, input, message);
  }
  if (!deframer.complete) throw new DroverError('protocol-violation', 'the stream ended within a message');
}

function drained(stream: ServerHttp2Stream, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = (): void => {
      stream.off('drain', done);
      signal.removeEventListener('abort', gone);
      resolve();
    };
    const gone = (): void => {
      stream.off('drain', done);
      reject(signal.reason as Error);
    };
    stream.once('drain', done);
    signal.addEventListener('abort', gone, { once: true });
  });
}

/** A thrown value as trailers: gRPC's own two, and Drover's code and hint beside them. */
function trailers(failure: unknown): Record<string, string> {
  if (failure === undefined) return { 'grpc-status': '0' };
  const error = DroverError.from(failure);
  const out: Record<string, string> = {
    'grpc-status': String(error.status),
    'grpc-message': encodeURIComponent(error.message),
    'drover-code': error.code,
  };
  if (error.hint !== undefined) out['drover-hint'] = encodeURIComponent(error.hint);
  return out;
}
