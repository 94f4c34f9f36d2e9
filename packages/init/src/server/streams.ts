import type { DescMethod, MessageShape } from '@bufbuild/protobuf';
import { Code, ConnectError, type HandlerContext, type MethodImpl } from '@connectrpc/connect';
import { createWritableIterable } from '@connectrpc/connect/protocol';
import { DroverError } from '@drover/foundation';
import type { AnyHandler } from './call.ts';
import { toConnectError } from './errors.ts';

type Message = MessageShape<DescMethod['output']>;

/** Connect's shape of a handler, for each kind of method: it pulls the answers that a handler of ours pushes. */
export function implementation(method: DescMethod, handler: AnyHandler): MethodImpl<DescMethod> {
  const answers = (requests: AsyncIterable<unknown>, context: HandlerContext) => run(handler, requests, context);
  const implementations = {
    bidi_streaming: answers,
    server_streaming: (request: unknown, context: HandlerContext) => answers(single(request), context),
    client_streaming: async (requests: AsyncIterable<unknown>, context: HandlerContext) => await first(answers(requests, context)),
    unary: async (request: unknown, context: HandlerContext) => await first(answers(single(request), context)),
  };
  return implementations[method.methodKind] as unknown as MethodImpl<DescMethod>;
}

async function* run(
  handler: AnyHandler,
  requests: AsyncIterable<unknown>,
  { signal }: HandlerContext,
): AsyncGenerator<Message, void, undefined> {
  const out = createWritableIterable<Message>();
  // Rejected when the client goes. Not one promise for all of them: each wait would stay with it for as long as the call lasts.
  const sending = new Set<(reason: DroverError) => void>();
  const abort = (): void => {
    for (const reject of sending) reject(cancelled(signal));
  };
  signal.addEventListener('abort', abort, { once: true });
  const send = async (response: Message): Promise<void> => {
    if (signal.aborted) throw cancelled(signal);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    sending.add(reject);
    // A write is over when the next answer is asked for: the connection has taken this one.
    out.write(response).then(resolve, reject);
    await promise.finally(() => sending.delete(reject));
  };
  const done = handler({ requests, send, signal } as never)
    .then(
      () => undefined,
      (error: unknown) => toConnectError(error),
    )
    .finally(() => out.close());
  yield* out;
  const failure = await done;
  if (failure !== undefined) throw failure;
}

function cancelled(signal: AbortSignal): DroverError {
  return new DroverError('cancelled', 'the call was cancelled', { cause: signal.reason });
}

async function* single(request: unknown): AsyncGenerator<unknown, void, undefined> {
  yield request;
}

async function first(answers: AsyncGenerator<Message, void, undefined>): Promise<Message> {
  let answer: Message | undefined;
  for await (const message of answers) answer ??= message;
  if (answer === undefined) throw new ConnectError('the method sent no answer', Code.Internal);
  return answer;
}
