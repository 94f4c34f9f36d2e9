import { AsyncLocalStorage } from 'node:async_hooks';
import { constants } from 'node:crypto';
import {
  createSecureServer,
  Http2ServerRequest,
  type Http2SecureServer,
  type Http2ServerResponse,
  type Http2Session,
  type SecureServerOptions,
} from 'node:http2';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import { createContextValues } from '@connectrpc/connect';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { clip, isSandboxId, systemClock, type Clock, type HostId, type Logger, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import type { Names } from '@drover/pki';
import { control, type link } from '@drover/protocol';
import { sandboxConnectionsPerHost } from '@drover/spec';
import type { InboundHandler, ServerIdentity } from '../hub/index.ts';
import type { Registry, RegisterRefusal } from '../identity/index.ts';
import {
  connectionsPerSandbox,
  sandboxConnections,
  sandboxHeaderBytes,
  sandboxShutdownMs,
  sandboxStreamsPerConnection,
} from '../limits.ts';
import type { IdentityStore, SandboxStore } from '../store/index.ts';
import type { Worldview } from '../worldview/index.ts';
import { callerKey, sandboxCertificate } from './caller.ts';
import { Connection } from './connection.ts';
import { sandboxEdge } from './edge.ts';
import { checkMethods } from './methods.ts';
import { Refusals } from './refusals.ts';
import { controlService } from './service.ts';

export interface SandboxListenerOptions {
  readonly store: { readonly identities: Pick<IdentityStore, 'bearer'>; readonly sandboxes: Pick<SandboxStore, 'get'> };
  readonly registry: Pick<Registry, 'register' | 'lookup' | 'seen'>;
  readonly worldview: Pick<Worldview, 'record'>;
  readonly ca: { readonly names: Names; readonly caPem: string };
  /** The control plane's own certificate. */
  readonly identity: ServerIdentity;
  readonly clock?: Clock;
  readonly logger?: Logger;
}

type Request = IncomingMessage | Http2ServerRequest;
type Response = ServerResponse | Http2ServerResponse;

/**
 * Serves ControlService to sandboxes, on connections that their hosts forward (spec 2, I-13 to I-20). It checks a TLS 1.3 client certificate
 * that chains to the CA, then the token, then the row in the registry. Connect and gRPC, over HTTP/2 and HTTP/1.1.
 */
export class SandboxListener {
  readonly #options: SandboxListenerOptions;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #server: Http2SecureServer;
  readonly #handle: (request: Request, response: Response) => void;
  readonly #refusals: Refusals;
  readonly #connections = new Set<Connection>();
  /** Open connections by host, and by host and sandbox. */
  readonly #perHost = new Map<string, number>();
  readonly #perSandbox = new Map<string, number>();
  /** Node's TLS server does not expose the connection beneath a socket. The socket's callbacks run in the context of this storage. */
  readonly #accepting = new AsyncLocalStorage<Connection>();
  readonly #bySocket = new WeakMap<TLSSocket | Http2Session, Connection>();
  #closed = false;

  /** @throws {DroverError} internal if a method has no access rule (I-19) */
  constructor(options: SandboxListenerOptions) {
    checkMethods(control.ControlService);
    const { registry, store } = options;
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#logger = options.logger ?? silentLogger;
    const refusals = new Refusals(store.sandboxes, options.worldview, this.#logger);
    this.#refusals = refusals;
    this.#handle = connectNodeAdapter({
      ...sandboxEdge({
        identities: store.identities,
        sandboxes: store.sandboxes,
        registry,
        refusals,
        clock: this.#clock,
        logger: this.#logger,
      }),
      contextValues: (request) => createContextValues().set(callerKey, this.#connectionOf(request)?.caller),
      routes: (router) => void router.service(control.ControlService, controlService({ registry, refusals })),
      grpcWeb: false,
    });
    this.#server = this.#makeServer();
  }

  #makeServer(): Http2SecureServer {
    const server = createSecureServer(
      {
        ...this.#tls(this.#options.identity),
        requestCert: true,
        rejectUnauthorized: true,
        allowHTTP1: true,
        maxHeaderSize: sandboxHeaderBytes,
        settings: { maxConcurrentStreams: sandboxStreamsPerConnection, maxHeaderListSize: sandboxHeaderBytes },
      } as SecureServerOptions,
      (request, response) => this.#serve(request, response),
    );
    // Runs before the server's own listener, which begins to read requests.
    server.prependListener('secureConnection', (socket) => {
      const connection = this.#accepting.getStore();
      if (connection === undefined) return;
      this.#bySocket.set(socket, connection);
      connection.secured(sandboxCertificate(socket.getPeerX509Certificate(), this.#options.ca.names));
    });
    server.on('session', (session) => {
      const connection = this.#accepting.getStore();
      if (connection !== undefined) this.#bySocket.set(session, connection);
      // The streams of a broken connection report its error.
      session.on('error', ignore);
    });
    server.on('tlsClientError', (error, socket) => {
      const connection = this.#accepting.getStore();
      // The failed check of the certificate, or the error of the handshake itself.
      const why = String(socket.authorizationError ?? error.message);
      this.#logger.warn({ ...logFieldsOf(connection), why }, 'a sandbox did not get through the TLS handshake');
      connection?.stream.destroy();
    });
    return server;
  }

  /** Takes over one connection of a sandbox. Beyond the limits, the connection is closed immediately. */
  readonly accept: InboundHandler = (hostId: HostId, inbound: link.SandboxInbound, stream: Duplex): void => {
    stream.on('error', ignore);
    const { sandboxId, peerAddress } = inbound;
    const refuse = (why: string): void => {
      this.#logger.warn({ hostId, sandboxId: clip(sandboxId), why }, 'a connection of a sandbox was closed');
      stream.destroy();
    };
    if (this.#closed) return refuse('the control plane stops');
    if (!isSandboxId(sandboxId)) return refuse('its host names no sandbox');
    if (this.#connections.size >= sandboxConnections) return refuse(`${sandboxConnections} connections of sandboxes are open`);
    // A host that invents sandbox ids must not use up the connections of other hosts' sandboxes.
    const ofHost = this.#perHost.get(hostId) ?? 0;
    if (ofHost >= sandboxConnectionsPerHost) return refuse(`${ofHost} connections of sandboxes of its host are open`);
    const key = `${hostId}/${sandboxId}`;
    const ofSandbox = this.#perSandbox.get(key) ?? 0;
    if (ofSandbox >= connectionsPerSandbox) return refuse(`the sandbox has ${ofSandbox} connections open`);
    const origin = { hostId, interface: clip(inbound.interface), networkOf: sandboxId, peerAddress: clip(peerAddress) };
    const connection = new Connection(stream, origin, this.#clock, (what) => {
      this.#logger.warn({ ...logFieldsOf(connection), what }, 'a connection of a sandbox took too long and was cut');
    });
    this.#connections.add(connection);
    count(this.#perHost, hostId, 1);
    count(this.#perSandbox, key, 1);
    stream.once('close', () => {
      this.#connections.delete(connection);
      count(this.#perHost, hostId, -1);
      count(this.#perSandbox, key, -1);
    });
    this.#accepting.run(connection, () => this.#server.emit('connection', stream));
  };

  get connections(): number {
    return this.#connections.size;
  }

  /** Calls under way. */
  get calls(): number {
    return [...this.#connections].reduce((sum, connection) => sum + connection.calls, 0);
  }

  /** Why the sandbox's last Register with this certificate, through its own host, was refused; undefined if it was not. */
  lastRefusal(id: SandboxId, thumbprint: string): RegisterRefusal | undefined {
    return this.#refusals.last(id, thumbprint);
  }

  /** Takes effect for new connections; open ones are left alone. */
  rotate(identity: ServerIdentity): void {
    this.#server.setSecureContext(this.#tls(identity));
  }

  /** Accepts no more connections, waits up to `sandboxShutdownMs` for the calls to end, then cuts the remaining connections. */
  async close(): Promise<void> {
    this.#closed = true;
    const closing = [...this.#connections].map(async (connection) => {
      const { stream } = connection;
      if (connection.calls === 0) stream.destroy();
      if (!stream.closed) await new Promise((resolve) => stream.once('close', resolve));
    });
    const done = new AbortController();
    const cut = this.#clock.sleep(sandboxShutdownMs, done.signal).then(
      () => {
        for (const { stream } of this.#connections) stream.destroy();
      },
      // All connections closed before.
      () => undefined,
    );
    await Promise.all(closing);
    done.abort();
    await cut;
  }

  #serve(request: Request, response: Response): void {
    const connection = this.#connectionOf(request);
    if (connection === undefined) {
      // Refuse to serve a connection of unknown origin.
      request.destroy();
      return;
    }
    // A date would distinguish otherwise identical refusals (I-16).
    response.sendDate = false;
    const endCall = connection.call();
    response.once('close', () => {
      endCall();
      if (this.#closed && connection.calls === 0) connection.stream.destroy();
    });
    try {
      this.#handle(request, response);
    } catch (error) {
      // The adapter throws for a request without a valid URL: no host, or an invalid path or header.
      this.#logger.info({ ...logFieldsOf(connection), err: error }, 'a request of a sandbox could not be read');
      response.statusCode = 400;
      response.end();
    }
  }

  #connectionOf(request: Request): Connection | undefined {
    const at = request instanceof Http2ServerRequest ? request.stream.session : (request.socket as TLSSocket);
    return at === undefined ? undefined : this.#bySocket.get(at);
  }

  #tls({ certificatePem, keyPem }: ServerIdentity): SecureServerOptions {
    return {
      minVersion: 'TLSv1.3',
      ca: this.#options.ca.caPem,
      cert: certificatePem,
      key: keyPem,
      // No session tickets: a resumed connection would skip the check of the certificate.
      secureOptions: constants.SSL_OP_NO_TICKET,
      sessionIdContext: 'drover-sandboxes',
    };
  }
}

function logFieldsOf(connection: Connection | undefined): Record<string, unknown> {
  if (connection === undefined) return {};
  const { hostId, networkOf, peerAddress, certificate } = connection.caller;
  return { hostId, networkOf, peerAddress, sandboxId: certificate?.sandboxId ?? '' };
}

/** Changes a count, and deletes it at zero. */
function count(counts: Map<string, number>, key: string, change: 1 | -1): void {
  const now = (counts.get(key) ?? 0) + change;
  if (now === 0) counts.delete(key);
  else counts.set(key, now);
}

function ignore(): void {}
