import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { connect as connectTls, createSecureContext, type SecureContext, type TLSSocket } from 'node:tls';
import { createClient, type Client } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { DroverError, withDeadline, type Clock, type HostId, type SandboxId } from '@drover/foundation';
import { init } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { maxSessionMessageBytes } from '@drover/spec';
import type { Hub } from '../../hub/index.ts';
import {
  connectionCloseMs,
  closeGraceMs,
  sessionBurstBytes,
  sessionBurstMessages,
  sessionBytesPerSecond,
  sessionMessagesPerSecond,
  sessionPingMs,
  sessionPingTimeoutMs,
} from '../../limits.ts';
import { PacedStream, paceMessages, TokenBucket } from './pace.ts';
import type { ShownCertificate } from './trust.ts';

/** The control plane's own certificate: init accepts no other peer (I-3). PEM. */
export interface SessionCredentials {
  readonly certPem: string;
  readonly keyPem: string;
  readonly caPem: string;
}

/** The control plane's client of one init, over its session connection. */
export type InitClient = Client<typeof init.InitService>;

/** A connection to the peer at the session port of a sandbox. */
export interface Connection {
  readonly client: InitClient;
  /** The certificate that the peer presented in the handshake. A bad one does not end the connection (I-1). */
  readonly shown: ShownCertificate;
  /** Aborts when the connection is lost. */
  readonly lost: AbortSignal;
  /** Aborts when the peer first exceeds the rate of a session. From then on it is read more slowly. */
  readonly throttled: AbortSignal;
  /** Resolves when its sockets have closed. @throws {CloseFailed} after `connectionCloseMs` */
  close(): Promise<void>;
}

/** Connects to the init of a sandbox. @throws {CloseFailed} when it fails and its sockets do not close (I-26) */
export type Connector = (target: { readonly id: SandboxId; readonly hostId: HostId }, signal: AbortSignal) => Promise<Connection>;

/** Sockets did not close in time, and leak their descriptors (I-25). */
export class CloseFailed extends DroverError {
  constructor(message: string) {
    super('session-unavailable', message);
  }
}

/** Connects through a tunnel of the sandbox's host. */
export function tunnelConnector(hub: Pick<Hub, 'openTunnel'>, credentials: () => SessionCredentials, clock: Clock): Connector {
  return async ({ id, hostId }, signal) => {
    const tunnel = await hub.openTunnel(hostId, { sandboxId: id, port: 'init' }, signal);
    return await connectInit(tunnel, id, credentials(), clock, signal);
  };
}

/**
 * TLS and gRPC over a tunnel to one init. Accepts any certificate, and returns it (I-1, I-2). Destroys the tunnel on failure
 * (I-26).
 */
export async function connectInit(
  tunnel: Duplex,
  id: SandboxId,
  credentials: SessionCredentials,
  clock: Clock,
  signal: AbortSignal,
): Promise<Connection> {
  const { socket, lost, close } = startTls(tunnel, credentials, clock);
  try {
    await once(socket, 'secureConnect', { signal: AbortSignal.any([signal, lost]) });
  } catch (error) {
    await close();
    throw lost.aborted ? new Error('the connection was closed during the TLS handshake', { cause: error }) : error;
  }
  const throttled = new AbortController();
  const { client, abort } = grpcOver(socket, id, clock, () => throttled.abort());
  return {
    client,
    shown: {
      certificate: socket.getPeerX509Certificate(),
      authorized: socket.authorized,
      authorizationError: socket.authorized ? '' : String(socket.authorizationError),
    },
    lost,
    throttled: throttled.signal,
    close: async () => {
      abort();
      await close();
    },
  };
}

interface TlsConnection {
  readonly socket: TLSSocket;
  /** Aborts when the connection is lost. */
  readonly lost: AbortSignal;
  /** @throws {CloseFailed} */
  readonly close: () => Promise<void>;
}

function startTls(tunnel: Duplex, credentials: SessionCredentials, clock: Clock): TlsConnection {
  const paced = new PacedStream(tunnel, new TokenBucket(sessionBytesPerSecond, sessionBurstBytes, clock), clock);
  const socket = connectTls({
    socket: paced,
    secureContext: contextOf(credentials),
    // I-1: a bad certificate is recorded and does not end the connection. Nothing that is sent is secret from the sandbox.
    rejectUnauthorized: false,
    // The name is a URI, which Node's own check of host names does not know; trust.ts checks it.
    checkServerIdentity: () => undefined,
    ALPNProtocols: ['h2'],
  });
  const lost = new AbortController();
  const lose = (): void => lost.abort(new Error('the connection to the sandbox was lost'));
  // `lost` reports the end; an error without a listener would end the process.
  for (const stream of [socket, tunnel, paced]) stream.on('error', lose);
  for (const stream of [socket, tunnel]) stream.once('close', lose);
  // An init that was killed half-closes the tunnel without closing TLS. An init that closes TLS does so before this timer expires.
  tunnel.once('end', () => {
    const timer = setTimeout(() => socket.destroy(), closeGraceMs);
    tunnel.once('close', () => clearTimeout(timer));
  });
  const closed = Promise.all([closeOf(socket), closeOf(tunnel)]);
  const close = async (): Promise<void> => {
    socket.destroy();
    tunnel.destroy();
    const late = (ms: number): Error => new CloseFailed(`the connection to the sandbox has not closed in ${ms / 1000} s`);
    await withDeadline(closed, connectionCloseMs, clock, late);
  };
  return { socket, lost: lost.signal, close };
}

function grpcOver(socket: TLSSocket, id: SandboxId, clock: Clock, throttled: () => void): { client: InitClient; abort: () => void } {
  const url = `https://${id}`;
  let used = false;
  const manager = new ReadableSessionManager(
    url,
    // The Session stream keeps the connection in use, so no idle timeout closes it.
    { pingIntervalMs: sessionPingMs, pingTimeoutMs: sessionPingTimeoutMs },
    {
      createConnection: () => {
        // A connection carries one session: only the dialer may open another.
        if (used) throw new Error('the session with the sandbox was lost');
        used = true;
        return socket;
      },
    },
  );
  const transport = createGrpcTransport({
    baseUrl: url,
    sessionManager: manager,
    // Compression costs time and, over TLS, reveals sizes.
    acceptCompression: [],
    readMaxBytes: maxSessionMessageBytes,
    interceptors: [paceMessages(new TokenBucket(sessionMessagesPerSecond, sessionBurstMessages, clock), clock, throttled)],
  });
  return { client: createClient(init.InitService, transport), abort: () => manager.abort() };
}

const contexts = new WeakMap<SessionCredentials, SecureContext>();

/** Parsed once for each set of credentials, which all sessions share. */
function contextOf(credentials: SessionCredentials): SecureContext {
  let context = contexts.get(credentials);
  if (context === undefined) {
    context = createSecureContext({
      ca: credentials.caPem,
      cert: credentials.certPem,
      key: credentials.keyPem,
      minVersion: 'TLSv1.3',
    });
    contexts.set(credentials, context);
  }
  return context;
}

async function closeOf(stream: Duplex): Promise<void> {
  if (stream.closed) return;
  await new Promise<void>((resolve) => {
    stream.once('close', resolve);
  });
}
