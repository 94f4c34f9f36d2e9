import type { Interceptor, StreamRequest, StreamResponse, UnaryRequest, UnaryResponse } from '@connectrpc/connect';
import type { Clock, DroverError, Logger } from '@drover/foundation';
import { api } from '@drover/protocol';
import type { TokenStore } from '../store/index.ts';
import { authenticate, callerKey } from './auth.ts';
import { fromConnectError, toConnectError } from './errors.ts';

/** Services that are called without an API token: for JoinService the join token is the credential (L-1). */
const exempt = new Set<string>([api.JoinService.typeName]);

/** Lets nobody past who has no valid API token. */
export function authentication(tokens: TokenStore): Interceptor {
  return (next) => async (request) => {
    if (!exempt.has(request.service.typeName)) {
      request.contextValues.set(callerKey, await authenticate(tokens, request.header.get('authorization')));
    }
    return await next(request);
  };
}

/**
 * The API's one edge for errors, and its one line in the log for each call: method, caller, code, milliseconds. Requests are not
 * logged: they hold environments and tokens.
 */
export function edge(options: { readonly logger: Logger; readonly clock: Clock }): Interceptor {
  return (next) => async (request) => {
    const started = options.clock.now();
    const finish = (error?: DroverError): void => {
      const line = {
        method: `${request.service.typeName}/${request.method.name}`,
        caller: request.contextValues.get(callerKey)?.name ?? '',
        code: error?.code ?? 'ok',
        ms: options.clock.now() - started,
        ...subjectOf(request),
      };
      if (error === undefined || error.code === 'cancelled') options.logger.debug(line, 'call');
      else if (error.code === 'internal') options.logger.error({ ...line, err: error.cause ?? error }, error.message);
      else options.logger.info(line, error.message);
    };
    try {
      const response = await next(request);
      return response.stream ? withEdge(response, finish) : settle(response, finish);
    } catch (thrown) {
      finish(fromConnectError(thrown));
      throw toConnectError(thrown);
    }
  };
}

function settle(response: UnaryResponse, finish: (error?: DroverError) => void): UnaryResponse {
  finish();
  return response;
}

/** Errors of a stream are thrown while it is read, long after the handler returned. */
function withEdge(response: StreamResponse, finish: (error?: DroverError) => void): StreamResponse {
  async function* guarded(): AsyncGenerator<typeof response.message extends AsyncIterable<infer M> ? M : never> {
    let error: DroverError | undefined;
    try {
      yield* response.message;
    } catch (thrown) {
      error = fromConnectError(thrown);
      throw toConnectError(thrown);
    } finally {
      finish(error);
    }
  }
  return { ...response, message: guarded() };
}

/** What a unary request is about, when it says so by a reference: never anything else of it. */
function subjectOf(request: UnaryRequest | StreamRequest): { readonly subject?: string } {
  if (request.stream) return {};
  const message = request.message as { readonly sandbox?: unknown; readonly host?: unknown; readonly name?: unknown };
  for (const value of [message.sandbox, message.host, message.name]) {
    if (typeof value === 'string' && value !== '') return { subject: value.slice(0, 100) };
  }
  return {};
}
