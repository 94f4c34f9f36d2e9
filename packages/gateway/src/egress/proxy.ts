import { createServer, ServerResponse, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { DroverError, type Logger } from '@drover/foundation';
import { evaluate, formatHost } from '@drover/spec/policy';
import { limits } from '../limits.ts';
import type { PolicyTable } from '../policy/index.ts';
import { Clients, type Client, type Flow } from './clients.ts';
import { DecisionLog, type Decision } from './decisions.ts';
import { dialFirst, ownAddresses, permittedAddresses, systemResolve, type Resolve } from './dial.ts';
import { exchange, type UpgradeStream } from './exchange.ts';
import { requestFraming } from './headers.ts';
import { badRequest, denied, noRule, RefusedError, refusalBody, refusalBytes, refusalHeaders, type Refusal } from './refusal.ts';
import { RefusalReports } from './refusal-reports.ts';
import { parseAbsoluteTarget, parseConnectTarget, type Target } from './target.ts';
import { tunnel } from './tunnel.ts';

/** Where to listen: an address, or a listening socket (sd_listen_fds(3)). */
export type ListenOn = { readonly host: string; readonly port: number } | { readonly fd: number };

export interface EgressProxyOptions {
  readonly table: PolicyTable;
  readonly logger: Logger;
  /** Default: the system's resolver. */
  readonly resolve?: Resolve;
  /** Default: the addresses of the host's interfaces. */
  readonly own?: () => ReadonlySet<string>;
  /** Called with each decision, in addition to the log. */
  readonly onDecision?: (decision: Decision) => void;
}

export interface EgressStats {
  readonly connections: number;
  readonly allowed: number;
  readonly denied: number;
}

/**
 * The allow-list forward proxy: HTTP in absolute-form, CONNECT for other protocols. A client is identified by its source address. Nothing passes
 * that the table does not allow; a changed table applies to existing connections too.
 */
export class EgressProxy {
  readonly #table: PolicyTable;
  readonly #logger: Logger;
  readonly #resolve: Resolve;
  readonly #own: () => ReadonlySet<string>;
  readonly #onDecision: (decision: Decision) => void;
  readonly #clients: Clients;
  readonly #servers: Server[] = [];
  /** Running lookups, by the sandbox's address and the name. */
  readonly #lookups = new Map<string, Map<string, Promise<readonly string[]>>>();
  readonly #unsubscribe: () => void;
  /** Refusals, grouped for people. */
  readonly refusals = new RefusalReports();
  readonly #sweeping = setInterval(() => this.refusals.sweep(), limits.refusalQuietMs / 4).unref();
  #allowed = 0;
  #denied = 0;

  constructor(options: EgressProxyOptions) {
    this.#table = options.table;
    this.#logger = options.logger;
    this.#resolve = options.resolve ?? systemResolve;
    this.#own = options.own ?? ownAddresses();
    const log = new DecisionLog(options.logger);
    this.#onDecision = (decision) => {
      log.record(decision);
      this.refusals.record(decision);
      options.onDecision?.(decision);
    };
    this.#clients = new Clients(options.table, this.#own);
    this.#unsubscribe = options.table.onChange(() => {
      const closed = this.#clients.enforce();
      if (closed > 0) this.#logger.info({ closed, version: String(this.#table.version) }, 'connections closed by a new policy');
    });
  }

  stats(): EgressStats {
    return { connections: this.#clients.size, allowed: this.#allowed, denied: this.#denied };
  }

  /** Listens on an additional address or socket. @throws {DroverError} port-in-use, missing-privilege */
  async listen(on: ListenOn): Promise<AddressInfo> {
    const server = createServer({
      maxHeaderSize: limits.headBytes,
      headersTimeout: limits.headTimeoutMs,
      // Bodies may take any time while bytes arrive: `timeout` below bounds the silence.
      requestTimeout: 0,
      keepAliveTimeout: limits.keepAliveMs,
      connectionsCheckingInterval: 1000,
      insecureHTTPParser: false,
      requireHostHeader: true,
      noDelay: true,
      // HTTP/2 in clear text could carry requests past the checks of this proxy: such an upgrade is ignored (RFC 9110, 7.8), and the
      // client gets its response over HTTP/1.1.
      shouldUpgradeCallback: (request) => !offersHttp2(request),
    });
    server.timeout = limits.idleMs;
    // One more than the limit, so that too many are refused, not truncated.
    server.maxHeadersCount = limits.headerLines + 1;
    server.maxConnections = limits.connections;
    server.on('connection', (socket) => this.#onConnection(socket));
    server.on('request', (request, response) => void this.#onRequest(request, response));
    server.on('upgrade', (request, stream, head) => this.#onUpgrade(request, stream as Socket, head));
    server.on('connect', (request, socket, head) => void this.#onConnect(request, socket, head));
    server.on('clientError', (error, socket) => this.#onClientError(error, socket));
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => reject(DroverError.from(error, 'unavailable')));
      server.listen({ ...on, exclusive: true, backlog: 1024 }, resolve);
    });
    this.#servers.push(server);
    return server.address() as AddressInfo;
  }

  /** Stops listening and closes every connection. */
  async close(): Promise<void> {
    this.#unsubscribe();
    clearInterval(this.#sweeping);
    const closed = this.#servers.map((server) => new Promise((resolve) => server.close(resolve)));
    this.#clients.destroyAll();
    for (const server of this.#servers) server.closeAllConnections();
    await Promise.all(closed);
  }

  #onConnection(socket: Socket): void {
    // The close that follows ends the flows.
    socket.on('error', () => undefined);
    if (this.#clients.add(socket) === undefined) socket.destroy();
  }

  /** The HTTP server has released the connection; the response takes it for servers that do not switch protocols, and for refusals. */
  #onUpgrade(request: IncomingMessage, socket: Socket, head: Buffer): void {
    socket.on('error', () => undefined);
    const response = new ServerResponse(request);
    response.shouldKeepAlive = false;
    response.assignSocket(socket);
    response.once('finish', () => socket.end());
    void this.#onRequest(request, response, { socket, head });
  }

  async #onRequest(request: IncomingMessage, response: ServerResponse, upgrade?: UpgradeStream): Promise<void> {
    const client = this.#clients.get(request.socket);
    if (client === undefined) {
      request.socket.destroy();
      return;
    }
    let target: Target | undefined;
    try {
      if (request.rawHeaders.length / 2 > limits.headerLines) throw tooManyHeaders();
      const { kind } = requestFraming(request.rawHeaders);
      if (upgrade !== undefined && kind !== 'none') throw badRequest('a request for another protocol carries no body');
      target = parseAbsoluteTarget(request.url ?? '', headerValues(request.rawHeaders, 'host'));
      await this.#forward(client, request, response, target, upgrade);
    } catch (error) {
      const refusal = this.#refusal(client, request.method ?? '', target, error);
      if (response.headersSent || response.destroyed) {
        response.destroy();
        return;
      }
      const body = refusalBody(refusal);
      // The body of a refused request is not read: the connection cannot be used again.
      response.writeHead(refusal.status, { ...refusalHeaders(body), connection: 'close' });
      response.end(body);
    }
  }

  async #forward(
    client: Client,
    request: IncomingMessage,
    response: ServerResponse,
    target: Target,
    upgrade: UpgradeStream | undefined,
  ): Promise<void> {
    const aborter = new AbortController();
    const connection = upgrade?.socket ?? response;
    connection.once('close', () => aborter.abort(new DroverError('cancelled', 'the client disconnected')));
    const flow: Flow = { host: target.host, port: target.port, protocol: 'http', address: undefined, close: () => connection.destroy() };
    client.flows.add(flow);
    try {
      const socket = await this.#open(client, flow, request.method ?? '', aborter.signal);
      await exchange(request, response, target, socket, aborter.signal, upgrade);
    } finally {
      client.flows.delete(flow);
    }
  }

  async #onConnect(request: IncomingMessage, stream: Duplex, head: Buffer): Promise<void> {
    const socket = stream as Socket;
    const client = this.#clients.get(socket);
    if (client === undefined) {
      socket.destroy();
      return;
    }
    // The HTTP server has removed its handlers from the socket.
    socket.on('error', () => undefined);
    const aborter = new AbortController();
    socket.once('close', () => aborter.abort(new DroverError('cancelled', 'the client disconnected')));
    let target: Target | undefined;
    let flow: Flow | undefined;
    try {
      if (requestFraming(request.rawHeaders).kind !== 'none') throw badRequest('CONNECT carries no body');
      target = parseConnectTarget(request.url ?? '');
      flow = { host: target.host, port: target.port, protocol: 'tcp', address: undefined, close: () => socket.destroy() };
      client.flows.add(flow);
      const server = await this.#open(client, flow, 'CONNECT', aborter.signal);
      socket.write('HTTP/1.1 200 Connection established\r\n\r\n');
      await tunnel(socket, server, head);
    } catch (error) {
      endWith(socket, refusalBytes(this.#refusal(client, 'CONNECT', target, error)));
    } finally {
      if (flow !== undefined) client.flows.delete(flow);
    }
  }

  /** Checks the name, resolves it, checks the addresses, dials, and checks again: the table may have changed meanwhile. */
  async #open(client: Client, flow: Flow, method: string, signal: AbortSignal): Promise<Socket> {
    const name = formatHost(flow.host);
    const entry = this.#table.get(client.address);
    const verdict = entry?.sandboxId === client.sandboxId ? evaluate(entry.policy, flow) : undefined;
    const rule = verdict?.rule?.text ?? noRule;
    if (entry === undefined || verdict?.allowed !== true) throw denied(rule, name, flow.port);
    const resolve: Resolve = async (asked) => await this.#lookup(client, asked);
    const addresses = await permittedAddresses(entry.policy, flow, resolve, this.#own());
    signal.throwIfAborted();
    const socket = await dialFirst(addresses, flow.port, name, signal);
    flow.address = socket.remoteAddress ?? addresses[0];
    if (signal.aborted || !this.#clients.allows(client, flow)) {
      socket.destroy();
      signal.throwIfAborted();
      throw denied(noRule, name, flow.port);
    }
    this.#allowed++;
    this.#onDecision(this.#decision(client, method, flow, true, rule));
    return socket;
  }

  /**
   * Bounds the concurrent lookups of one sandbox, which may choose names that resolve slowly. An abandoned lookup counts until it ends: it
   * occupies a thread of the resolver, which all sandboxes share.
   */
  async #lookup(client: Client, name: string): Promise<readonly string[]> {
    const running = this.#lookups.get(client.address) ?? new Map<string, Promise<readonly string[]>>();
    const same = running.get(name);
    if (same !== undefined) return await same;
    if (running.size >= limits.lookupsPerSandbox) {
      throw new RefusedError(
        { status: 503, error: 'too-busy', rule: 'no rule', hint: 'try again in a moment' },
        `${running.size} names are being resolved for this sandbox already`,
      );
    }
    const lookup = this.#resolve(name).finally(() => {
      running.delete(name);
      if (running.size === 0) this.#lookups.delete(client.address);
    });
    running.set(name, lookup);
    this.#lookups.set(client.address, running);
    return await lookup;
  }

  #decision(client: Client, method: string, target: Pick<Target, 'host' | 'port'> | undefined, allowed: boolean, rule: string): Decision {
    const host = target === undefined ? '' : formatHost(target.host);
    return {
      sandbox: client.sandboxId,
      address: client.address,
      method,
      host,
      port: target?.port ?? 0,
      allowed,
      rule,
      version: this.#table.version,
    };
  }

  #refusal(client: Client, method: string, target: Target | undefined, thrown: unknown): Refusal {
    const error =
      thrown instanceof RefusedError
        ? thrown
        : new RefusedError(
            { status: 502, error: 'upstream-failed', rule: 'no rule', hint: 'the rule allows it; the server ended the exchange' },
            thrown instanceof Error ? thrown.message : String(thrown),
            thrown,
          );
    const { status, error: code, rule, hint } = error.refusal;
    if (status === 403) {
      this.#denied++;
      this.#onDecision(this.#decision(client, method, target, false, rule));
    }
    const host = target === undefined ? '' : formatHost(target.host);
    return { status, error: code, message: error.message, sandbox: client.sandboxId, host, port: target?.port ?? 0, method, rule, hint };
  }

  #onClientError(error: Error, stream: Duplex): void {
    const socket = stream as Socket;
    const client = this.#clients.get(socket);
    const code = 'code' in error ? error.code : undefined;
    // During a response, further bytes would be taken for a part of it.
    if (client === undefined || client.flows.size > 0 || !socket.writable || code === 'ECONNRESET') {
      socket.destroy();
      return;
    }
    const [status, message]: readonly [number, string] =
      code === 'HPE_HEADER_OVERFLOW'
        ? [431, `the request's head is larger than ${limits.headBytes} bytes`]
        : code === 'ERR_HTTP_REQUEST_TIMEOUT'
          ? [408, `the request's head did not arrive within ${limits.headTimeoutMs} ms`]
          : [400, 'this is not a request that HTTP/1.1 allows'];
    const hint = 'use this address as an HTTP proxy (http_proxy, https_proxy)';
    endWith(
      socket,
      refusalBytes({
        status,
        error: 'bad-request',
        message,
        sandbox: client.sandboxId,
        host: '',
        port: 0,
        method: '',
        rule: 'no rule',
        hint,
      }),
    );
  }
}

/** Writes a last response and closes within a bounded time. Reads the client's bytes meanwhile, so that it reads the response. */
function endWith(socket: Socket, bytes: Buffer): void {
  if (socket.destroyed) return;
  socket.setTimeout(limits.stopGraceMs, () => socket.destroy());
  socket.resume();
  socket.end(bytes);
}

/** Upgrade is a list of protocols (RFC 9110, 7.8), of which the server chooses one. */
function offersHttp2({ headers }: IncomingMessage): boolean {
  return headers.upgrade?.split(',').some((protocol) => protocol.trim().toLowerCase() === 'h2c') ?? false;
}

function headerValues(raw: readonly string[], name: string): string[] {
  return raw.filter((_, i) => i % 2 === 1 && raw[i - 1]?.toLowerCase() === name);
}

function tooManyHeaders(): RefusedError {
  return new RefusedError(
    { status: 431, error: 'bad-request', rule: 'no rule', hint: 'send fewer header fields' },
    `the request has more than ${limits.headerLines} header fields`,
  );
}
