import {
  constants,
  createServer,
  type Http2Server,
  type Http2ServerRequest,
  type Http2ServerResponse,
  type ServerHttp2Session,
} from 'node:http2';
import type { Duplex } from 'node:stream';
import type { DescMethod } from '@bufbuild/protobuf';
import { createMethodImplSpec } from '@connectrpc/connect';
import { createHandlerFactory } from '@connectrpc/connect/protocol-grpc';
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from '@connectrpc/connect-node';
import { init } from '@drover/protocol';
import { maxSessionMessageBytes } from '@drover/spec';
import { lingerMs, maxConcurrentCalls } from '../limits.ts';
import type { AnyHandler, Handlers } from './call.ts';
import { implementation } from './streams.ts';

type UniversalHandler = ReturnType<ReturnType<typeof createHandlerFactory>>;

/**
 * InitService as a gRPC server for connections that somebody else made and checked. The protocol is Connect's, and of what Connect can do
 * only gRPC: its router would bring two more protocols and zlib into PID 1 of every sandbox.
 */
export class GrpcServer {
  readonly #server: Http2Server;
  readonly #handlers = new Map<string, UniversalHandler>();
  readonly #sessions = new Set<ServerHttp2Session>();
  readonly #onCall: () => void;

  /** @param onCall called at the start and the end of every call */
  constructor(handlers: Handlers, onCall: () => void = () => undefined) {
    this.#onCall = onCall;
    const protocol = createHandlerFactory({ acceptCompression: [], readMaxBytes: maxSessionMessageBytes });
    for (const method of init.InitService.methods as readonly DescMethod[]) {
      const handler = handlers[method.localName as keyof Handlers] as AnyHandler;
      const handle = protocol(createMethodImplSpec(method, implementation(method, handler)));
      this.#handlers.set(handle.requestPath, handle);
    }
    this.#server = createServer({ settings: { maxConcurrentStreams: maxConcurrentCalls, enablePush: false } }, (request, response) =>
      this.#serve(request, response),
    );
    this.#server.on('session', (session) => {
      this.#sessions.add(session);
      session.on('close', () => this.#sessions.delete(session));
      // A broken connection shows in each call's signal; here it only must not crash PID 1.
      session.on('error', () => undefined);
    });
  }

  /** Serves one connection until it ends. */
  accept(socket: Duplex): void {
    this.#server.emit('connection', socket);
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

  #serve(request: Http2ServerRequest, response: Http2ServerResponse): void {
    const { stream } = request;
    // gRPC has no use for it, and Node would keep a timer for the text of the date.
    response.sendDate = false;
    this.#onCall();
    stream.once('close', this.#onCall);
    stream.on('error', () => undefined);
    // The client may still be sending when it has the whole answer, and is told that it need not (RFC 9113, section 8.1); a moment
    // later, since clients take a reset that comes with the answer for a failure of the call.
    stream.once('finish', () => {
      const timer = setTimeout(() => stream.close(constants.NGHTTP2_NO_ERROR), lingerMs);
      stream.once('close', () => clearTimeout(timer));
      stream.resume();
    });
    const handle = this.#handlers.get(request.url);
    if (handle === undefined) {
      unimplemented(request, response);
      return;
    }
    handle(universalRequestFromNodeRequest(request, response, undefined, undefined))
      .then((answer) => universalResponseToNodeResponse(answer, response))
      // What the handler threw is in the trailers already: this is a connection that broke while it was written to.
      .catch(() => stream.close(constants.NGHTTP2_CANCEL));
  }
}

function unimplemented(request: Http2ServerRequest, response: Http2ServerResponse): void {
  response.writeHead(200, { 'content-type': 'application/grpc+proto' });
  response.addTrailers({
    'grpc-status': '12',
    'grpc-message': encodeURIComponent(`there is no method ${request.url.slice(0, 100)}`),
    'drover-code': 'unimplemented',
  });
  response.end();
}
