import {
  constants,
  createServer,
  type Http2Server,
  type Http2ServerRequest,
  type Http2ServerResponse,
  type ServerHttp2Session,
} from 'node:http2';
import type { Duplex } from 'node:stream';
import type { DescService } from '@bufbuild/protobuf';
import { createServiceImplSpec, type MethodImplSpec, type ServiceImpl } from '@connectrpc/connect';
import { createHandlerFactory } from '@connectrpc/connect/protocol-grpc';
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from '@connectrpc/connect-node';
import type { RpcEdge } from './edge.ts';

type UniversalHandler = ReturnType<ReturnType<typeof createHandlerFactory>>;

export interface GrpcServerOptions {
  readonly edge: RpcEdge;
  readonly maxConcurrentCalls: number;
  /** How long a client may continue to send after the response. Milliseconds. */
  readonly lingerMs: number;
  /** Called at the start and at the end of each call. */
  readonly onCall?: () => void;
}

/**
 * A gRPC server for connections that its owner accepts and authenticates. It uses only the gRPC protocol of Connect: Connect's router would
 * load two more protocols and zlib into PID 1 of every sandbox.
 */
export class GrpcServer {
  readonly #server: Http2Server;
  readonly #handlers = new Map<string, UniversalHandler>();
  readonly #sessions = new Set<ServerHttp2Session>();
  readonly #options: GrpcServerOptions;

  constructor(methods: Iterable<MethodImplSpec>, options: GrpcServerOptions) {
    this.#options = options;
    const protocol = createHandlerFactory(options.edge);
    for (const method of methods) {
      const handle = protocol(method);
      this.#handlers.set(handle.requestPath, handle);
    }
    const settings = { maxConcurrentStreams: options.maxConcurrentCalls, enablePush: false };
    this.#server = createServer({ settings }, (request, response) => this.#serve(request, response));
    this.#server.on('session', (session) => {
      this.#sessions.add(session);
      session.on('close', () => this.#sessions.delete(session));
      // The signals of the calls report a broken connection. Without a listener the error would end the process.
      session.on('error', () => undefined);
    });
  }

  /** Serves one connection until it ends. */
  accept(socket: Duplex): void {
    this.#server.emit('connection', socket);
  }

  /** Accepts no more calls, waits at most `ms` for the open ones, then closes the connections. */
  async close(ms: number): Promise<void> {
    const timer = setTimeout(() => {
      for (const session of this.#sessions) session.destroy();
    }, ms);
    await Promise.all(
      [...this.#sessions].map(
        async (session) =>
          await new Promise<void>((resolve) => {
            session.once('close', resolve);
            session.close();
          }),
      ),
    );
    clearTimeout(timer);
  }

  #serve(request: Http2ServerRequest, response: Http2ServerResponse): void {
    const { stream } = request;
    const { onCall, lingerMs } = this.#options;
    // gRPC has no use for a date, and Node would keep a timer for its text.
    response.sendDate = false;
    onCall?.();
    if (onCall !== undefined) stream.once('close', onCall);
    stream.on('error', () => undefined);
    // Reset the stream of a client that still sends after the whole response (RFC 9113, section 8.1). The delay is necessary: clients treat a
    // reset that arrives with the response as a failure of the call.
    stream.once('finish', () => {
      const timer = setTimeout(() => stream.close(constants.NGHTTP2_NO_ERROR), lingerMs);
      stream.once('close', () => clearTimeout(timer));
      stream.resume();
    });
    const handle = this.#handlers.get(request.url);
    if (handle === undefined) {
      refuseUnknownMethod(request, response);
      return;
    }
    handle(universalRequestFromNodeRequest(request, response, undefined, undefined))
      .then((answer) => universalResponseToNodeResponse(answer, response))
      // The connection broke during a write. The error of a handler is sent in the trailers instead.
      .catch(() => stream.close(constants.NGHTTP2_CANCEL));
  }
}

/** The methods of a service, for a GrpcServer. */
export function methodsOf<S extends DescService>(service: S, implementation: ServiceImpl<S>): readonly MethodImplSpec[] {
  return Object.values(createServiceImplSpec(service, implementation as Partial<ServiceImpl<DescService>>).methods);
}

function refuseUnknownMethod(request: Http2ServerRequest, response: Http2ServerResponse): void {
  response.writeHead(200, { 'content-type': 'application/grpc+proto' });
  const message = `there is no method ${request.url.slice(0, 100)}`;
  response.addTrailers({ 'grpc-status': '12', 'grpc-message': encodeURIComponent(message) });
  response.end();
}
