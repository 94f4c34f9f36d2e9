import type { Interceptor, StreamRequest, StreamResponse, UnaryRequest } from '@connectrpc/connect';
import type { Clock, DroverError } from '@drover/foundation';
import { publicError, toConnectError } from './errors.ts';

export type RpcRequest = UnaryRequest | StreamRequest;

type Log = (fields: Record<string, unknown>, message: string) => void;

export interface EdgeOptions {
  readonly logger: { readonly debug: Log; readonly info: Log; readonly warn: Log; readonly error: Log };
  readonly clock: Pick<Clock, 'now'>;
  /** A larger message is refused with too-large. */
  readonly maxMessageBytes: number;
  /** Aborts the open calls, with its reason. */
  readonly stop?: AbortSignal;
  /** Runs before the handler. It throws a DroverError for a caller that may not call the method. */
  readonly authorize?: (request: RpcRequest) => Promise<void>;
  /** Fields of the call's log line, read when the call ends. Messages are never logged whole: they hold environments and tokens. */
  readonly fields?: (request: RpcRequest) => Record<string, unknown>;
  /** Runs before an error leaves. @param ms the time since the call began */
  readonly beforeError?: (error: DroverError, request: RpcRequest, ms: number) => Promise<void>;
}

/** The options of a Connect server that are the same for all of Drover's. */
export interface RpcEdge {
  readonly interceptors: Interceptor[];
  readonly readMaxBytes: number;
  readonly acceptCompression: [];
  readonly shutdownSignal?: AbortSignal;
}

/**
 * The edge of every RPC server. It authorizes the caller, bounds messages, converts a handler's exception to a wire error, and logs one line
 * for each call. The handler's signal aborts when the caller cancels, at the caller's deadline, and when the server stops.
 */
export function rpcEdge(options: EdgeOptions): RpcEdge {
  return {
    interceptors: [(next) => async (request) => await serve(options, request, next)],
    readMaxBytes: options.maxMessageBytes,
    // Networks are local, or carry compressed data already. Over TLS, compression also reveals content by its size.
    acceptCompression: [],
    ...(options.stop !== undefined && { shutdownSignal: options.stop }),
  };
}

async function serve(options: EdgeOptions, request: RpcRequest, next: Parameters<Interceptor>[0]): ReturnType<ReturnType<Interceptor>> {
  const { clock, authorize, beforeError } = options;
  const start = clock.now();
  const fail = async (thrown: unknown): Promise<never> => {
    let errorId: string | undefined;
    const error = publicError(thrown, (id) => (errorId = id));
    const ms = clock.now() - start;
    logError(options, request, error, { ms, ...(errorId !== undefined && { errorId }) });
    await beforeError?.(error, request, ms);
    throw toConnectError(error);
  };
  const succeed = (): void => options.logger.debug({ ...lineOf(options, request, 'ok'), ms: clock.now() - start }, 'call');
  try {
    await authorize?.(request);
    const response = await next(request);
    if (response.stream) return { ...response, message: guarded(response, succeed, fail) };
    succeed();
    return response;
  } catch (thrown) {
    return await fail(thrown);
  }
}

/** Passes the messages of a stream on. The error of a stream is thrown during the iteration. */
async function* guarded(
  { message }: StreamResponse,
  succeed: () => void,
  fail: (thrown: unknown) => Promise<never>,
): AsyncGenerator<StreamResponse['message'] extends AsyncIterable<infer M> ? M : never> {
  let failed = false;
  try {
    yield* message;
  } catch (thrown) {
    failed = true;
    await fail(thrown);
  } finally {
    if (!failed) succeed();
  }
}

function lineOf({ fields }: EdgeOptions, request: RpcRequest, code: string): Record<string, unknown> {
  return { method: `${request.service.typeName}/${request.method.name}`, code, ...fields?.(request) };
}

function logError(options: EdgeOptions, request: RpcRequest, error: DroverError, outcome: Record<string, unknown>): void {
  const { logger } = options;
  const line = { ...lineOf(options, request, error.code), ...outcome };
  const { cause } = error;
  switch (error.code) {
    case 'cancelled':
      return logger.debug(line, error.message);
    case 'internal':
      return logger.error({ ...line, err: cause ?? error }, error.message);
    case 'unauthenticated':
    case 'permission-denied':
    case 'join-refused':
      return logger.warn({ ...line, ...(cause instanceof Error && { why: cause.message }) }, error.message);
    default:
      return logger.info(line, error.message);
  }
}
