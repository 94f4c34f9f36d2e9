import type { DescMethod, MessageShape } from '@bufbuild/protobuf';
import { Code, ConnectError, createMethodImplSpec, type HandlerContext, type MethodImpl, type MethodImplSpec } from '@connectrpc/connect';
import { createWritableIterable } from '@connectrpc/connect/protocol';
import { DroverError } from '@drover/foundation';
import { init } from '@drover/protocol';
import type { AnyHandler, Handlers } from './server/index.ts';

type Message = MessageShape<DescMethod['output']>;

/** The methods of InitService in Connect's form: Connect pulls responses, and these handlers push them. */
export function methodsOf(handlers: Handlers): readonly MethodImplSpec[] {
  return (init.InitService.methods as readonly DescMethod[]).map((method) =>
    createMethodImplSpec(method, implementation(method, handlers[method.localName as keyof Handlers] as AnyHandler)),
  );
}

function implementation(method: DescMethod, handler: AnyHandler): MethodImpl<DescMethod> {
  const responses = (requests: AsyncIterable<unknown>, context: HandlerContext) => run(handler, requests, context);
  const implementations = {
    bidi_streaming: responses,
    server_streaming: (request: unknown, context: HandlerContext) => responses(single(request), context),
    client_streaming: async (requests: AsyncIterable<unknown>, context: HandlerContext) => await first(responses(requests, context)),
    unary: async (request: unknown, context: HandlerContext) => await first(responses(single(request), context)),
  };
  return implementations[method.methodKind] as unknown as MethodImpl<DescMethod>;
}

async function* run(
  handler: AnyHandler,
  requests: AsyncIterable<unknown>,
  { signal }: HandlerContext,
): AsyncGenerator<Message, void, undefined> {
  const out = createWritableIterable<Message>();
  // Rejected when the client disconnects. Not one promise for all of them: each wait would stay with it for as long as the call lasts.
  const sending = new Set<(reason: DroverError) => void>();
  const abort = (): void => {
    for (const reject of sending) reject(cancelled(signal));
  };
  signal.addEventListener('abort', abort, { once: true });
  const send = async (response: Message): Promise<void> => {
    if (signal.aborted) throw cancelled(signal);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    sending.add(reject);
    // A write ends when the next response is pulled: the connection has taken this one.
    out.write(response).then(resolve, reject);
    await promise.finally(() => sending.delete(reject));
  };
  const done = handler({ requests, send, signal } as never)
    .then(
      () => undefined,
      (error: unknown) => ({ error }),
    )
    .finally(() => out.close());
  yield* out;
  const failure = await done;
  if (failure !== undefined) throw failure.error;
}

function cancelled(signal: AbortSignal): DroverError {
  return new DroverError('cancelled', 'the call was cancelled', { cause: signal.reason });
}

async function* single(request: unknown): AsyncGenerator<unknown, void, undefined> {
  yield request;
}

async function first(responses: AsyncGenerator<Message, void, undefined>): Promise<Message> {
  let response: Message | undefined;
  for await (const message of responses) response ??= message;
  if (response === undefined) throw new ConnectError('the method sent no response', Code.Internal);
  return response;
}
