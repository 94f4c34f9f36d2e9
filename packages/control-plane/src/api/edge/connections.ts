import {
  Http2ServerRequest,
  type Http2SecureServer,
  type Http2ServerResponse,
  type Http2Session,
  type ServerHttp2Session,
} from 'node:http2';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { after, limitHandshakes, type Clock } from '@drover/foundation';
import { api } from '@drover/protocol';
import { apiHandshakeTimeoutMs, apiIdleMs, apiPingMs, apiPingTimeoutMs, apiRequestMs } from '../../limits.ts';

/** The paths of the methods whose caller may send for as long as the call lasts. */
const clientStreams: ReadonlySet<string> = new Set(
  Object.values(api)
    .filter((value) => typeof value === 'object' && value !== null && 'kind' in value && value.kind === 'service')
    .flatMap((service) => (service as typeof api.SandboxService).methods)
    .filter(({ methodKind }) => methodKind === 'client_streaming' || methodKind === 'bidi_streaming')
    .map((method) => `/${method.parent.typeName}/${method.name}`),
);

/**
 * The time limits of the API's connections: for the TLS handshake, the time without a call, the arrival of a request, and the response to a
 * ping. They apply whatever a peer sends, since it is unauthenticated before its first call.
 */
export function limitConnections(server: Http2SecureServer, clock: Clock): void {
  limitHandshakes(server, apiHandshakeTimeoutMs, clock);
  const idle = new WeakMap<Http2Session | TLSSocket, IdleLimit>();
  const watch = (connection: Http2Session | TLSSocket): IdleLimit => {
    const limit = new IdleLimit(clock, () => connection.destroy());
    idle.set(connection, limit);
    connection.once('close', () => limit.close());
    return limit;
  };
  server.on('session', (session) => {
    const limit = watch(session);
    void endSilent(session, () => limit.busy, clock);
  });
  server.on('secureConnection', (socket: TLSSocket) => {
    // The session is watched instead.
    if (socket.alpnProtocol === 'h2') return;
    watch(socket);
    // HTTP/1.1 has no ping: the kernel probes the peer.
    socket.setKeepAlive(true, apiPingMs);
  });
  server.on('request', (message: Http2ServerRequest | IncomingMessage, response: Http2ServerResponse | ServerResponse) => {
    const connection = message instanceof Http2ServerRequest ? message.stream.session : (message.socket as TLSSocket);
    const limit = connection === undefined ? undefined : idle.get(connection);
    limit?.began();
    response.once('close', () => limit?.ended());
    if (clientStreams.has(message.url ?? '')) return;
    const arrived = after(apiRequestMs, clock, () => message.destroy());
    message.once('end', arrived);
    message.once('close', arrived);
  });
}

/**
 * Ends a connection whose peer sends nothing after a ping while a call is under way. The calls of a client that vanished without a reset
 * would otherwise last forever, and prevent the idle stop of a sandbox. Any byte counts as a response: over a slow line the response to a
 * ping arrives after everything that the client has sent before.
 */
async function endSilent(session: ServerHttp2Session, busy: () => boolean, clock: Clock): Promise<void> {
  const life = new AbortController();
  session.once('close', () => life.abort());
  try {
    for (;;) {
      await clock.sleep(apiPingMs, life.signal);
      if (!busy()) continue;
      const { bytesRead } = session.socket;
      const answered = new AbortController();
      session.ping((error) => {
        if (error === null) answered.abort();
      });
      const late = await clock.sleep(apiPingTimeoutMs, AbortSignal.any([life.signal, answered.signal])).then(
        () => true,
        () => false,
      );
      if (late && session.socket.bytesRead === bytesRead) return session.destroy();
    }
  } catch {
    // The connection has ended.
  }
}

/** Ends a connection on which no call is under way for `apiIdleMs`. */
class IdleLimit {
  readonly #clock: Clock;
  readonly #end: () => void;
  #stopTimer: () => void = () => undefined;
  #calls = 0;

  constructor(clock: Clock, end: () => void) {
    this.#clock = clock;
    this.#end = end;
    this.#wait();
  }

  get busy(): boolean {
    return this.#calls > 0;
  }

  began(): void {
    this.#calls++;
    this.#stopTimer();
  }

  ended(): void {
    if (--this.#calls === 0) this.#wait();
  }

  close(): void {
    // A call that ends with its connection starts no further wait.
    this.#calls++;
    this.#stopTimer();
  }

  #wait(): void {
    this.#stopTimer = after(apiIdleMs, this.#clock, this.#end);
  }
}
