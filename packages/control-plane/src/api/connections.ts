import { Http2ServerRequest, type Http2SecureServer, type Http2ServerResponse, type Http2Session } from 'node:http2';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { limitHandshakes, type Clock } from '@drover/foundation';
import { api } from '@drover/protocol';
import { apiHandshakeTimeoutMs, apiIdleMs, apiRequestMs } from '../limits.ts';

/** Paths of the methods whose caller may go on sending for as long as the call lasts. */
const clientStreams: ReadonlySet<string> = new Set(
  Object.values(api)
    .filter((value) => typeof value === 'object' && value !== null && 'kind' in value && value.kind === 'service')
    .flatMap((service) => (service as typeof api.SandboxService).methods)
    .filter(({ methodKind }) => methodKind === 'client_streaming' || methodKind === 'bidi_streaming')
    .map((method) => `/${method.parent.typeName}/${method.name}`),
);

/**
 * The time limits of the API's connections: for the TLS handshake, for the time without a call, and for a request to arrive. They hold
 * whatever a peer sends meanwhile, since nothing about it is known before its first call.
 */
export function limitConnections(server: Http2SecureServer, clock: Clock): void {
  limitHandshakes(server, apiHandshakeTimeoutMs, clock);
  const idle = new WeakMap<Http2Session | TLSSocket, IdleLimit>();
  const watch = (connection: Http2Session | TLSSocket): void => {
    const limit = new IdleLimit(clock, () => connection.destroy());
    idle.set(connection, limit);
    connection.once('close', () => limit.close());
  };
  server.on('session', watch);
  server.on('secureConnection', (socket: TLSSocket) => {
    // HTTP/2 has its session.
    if (socket.alpnProtocol !== 'h2') watch(socket);
  });
  server.on('request', (message: Http2ServerRequest | IncomingMessage, response: Http2ServerResponse | ServerResponse) => {
    const connection = message instanceof Http2ServerRequest ? message.stream.session : (message.socket as TLSSocket);
    const limit = connection === undefined ? undefined : idle.get(connection);
    limit?.began();
    response.once('close', () => limit?.ended());
    if (clientStreams.has(message.url ?? '')) return;
    const arrived = new AbortController();
    message.once('end', () => arrived.abort());
    message.once('close', () => arrived.abort());
    clock.sleep(apiRequestMs, arrived.signal).then(
      () => message.destroy(),
      // It arrived in time.
      () => undefined,
    );
  });
}

/** Ends a connection on which no call is under way for `apiIdleMs`. */
class IdleLimit {
  readonly #clock: Clock;
  readonly #end: () => void;
  #busy = new AbortController();
  #calls = 0;

  constructor(clock: Clock, end: () => void) {
    this.#clock = clock;
    this.#end = end;
    this.#wait();
  }

  began(): void {
    this.#calls++;
    this.#busy.abort();
  }

  ended(): void {
    if (--this.#calls === 0) this.#wait();
  }

  close(): void {
    // A call that ends with its connection begins no further wait.
    this.#calls++;
    this.#busy.abort();
  }

  #wait(): void {
    this.#busy = new AbortController();
    this.#clock.sleep(apiIdleMs, this.#busy.signal).then(
      () => this.#end(),
      // A call began, or the connection ended.
      () => undefined,
    );
  }
}
