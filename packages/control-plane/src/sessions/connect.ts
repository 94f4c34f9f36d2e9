import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { connect as connectTls, createSecureContext, type SecureContext } from 'node:tls';
import { createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import type { Clock, HostId, SandboxId } from '@drover/foundation';
import { init } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { maxSessionMessageBytes } from '@drover/spec';
import type { Hub } from '../hub/index.ts';
import {
  connectionCloseMs,
  farewellMs,
  sessionBurstBytes,
  sessionBurstMessages,
  sessionBytesPerSecond,
  sessionMessagesPerSecond,
  sessionPingMs,
  sessionPingTimeoutMs,
} from '../limits.ts';
import { PacedStream, paceMessages, TokenBucket } from './pace.ts';
import type { InitClient } from './sessions.ts';
import type { ShownCertificate } from './trust.ts';

/** The control plane's own certificate: init takes no other peer (I-3). PEM. */
export interface SessionCredentials {
  readonly certPem: string;
  readonly keyPem: string;
  readonly caPem: string;
}

/** A connection to one init, whoever that is. */
export interface Connection {
  readonly client: InitClient;
  /** What it showed. Nothing is decided of it here (I-1): policy belongs to who reads it. */
  readonly shown: ShownCertificate;
  /** Aborts when the connection is gone. */
  readonly lost: AbortSignal;
  /** Aborts when the peer first sends more than a session may, and is read more slowly for it. */
  readonly throttled: AbortSignal;
  /** Resolves when its sockets have closed. @throws {CloseFailed} they have not, in `connectionCloseMs` */
  close(): Promise<void>;
}

/** Connects to the init of a sandbox. @throws {CloseFailed} it failed, and what it had opened did not close (I-26) */
export type Connector = (target: { readonly id: SandboxId; readonly hostId: HostId }, signal: AbortSignal) => Promise<Connection>;

/** Sockets that were told to close are still there: descriptors are being lost (I-25). */
export class CloseFailed extends Error {
  override readonly name = 'CloseFailed';
}

/** Connects through a tunnel of the sandbox's host. */
export function tunnelConnector(hub: Pick<Hub, 'openTunnel'>, credentials: () => SessionCredentials, clock: Clock): Connector {
  return async ({ id, hostId }, signal) => {
    const tunnel = await hub.openTunnel(hostId, { sandboxId: id, port: 'init' }, signal);
    return await connectInit(tunnel, id, credentials(), clock, signal);
  };
}

/** TLS and gRPC over a tunnel to one init. Takes any certificate (I-1, I-2) and says what it was. The tunnel is destroyed on failure (I-26). */
export async function connectInit(
  tunnel: Duplex,
  id: SandboxId,
  credentials: SessionCredentials,
  clock: Clock,
  signal: AbortSignal,
): Promise<Connection> {
  const paced = new PacedStream(tunnel, new TokenBucket(sessionBytesPerSecond, sessionBurstBytes, clock), clock);
  const throttled = new AbortController();
  const socket = connectTls({
    socket: paced,
    secureContext: contextOf(credentials),
    // I-1: a bad certificate is recorded, and talked to all the same. What is sent is no secret from the sandbox itself.
    rejectUnauthorized: false,
    // The name is a URI, which Node's own check of host names knows nothing of; trust.ts looks.
    checkServerIdentity: () => undefined,
    ALPNProtocols: ['h2'],
  });
  const lost = new AbortController();
  const gone = (): void => lost.abort(new Error('the connection to the sandbox was lost'));
  // The connection's end is told by `lost`; an error without a listener would end the process.
  socket.on('error', gone);
  tunnel.on('error', gone);
  paced.on('error', gone);
  socket.once('close', gone);
  tunnel.once('close', gone);
  // An init that was killed says no farewell, only that there will be no more bytes; one that says it closes sooner than this.
  tunnel.once('end', () => {
    const timer = setTimeout(() => socket.destroy(), farewellMs);
    tunnel.once('close', () => clearTimeout(timer));
  });
  const closed = Promise.all([closeOf(socket), closeOf(tunnel)]);
  const close = async (): Promise<void> => {
    socket.destroy();
    tunnel.destroy();
    const waited = new AbortController();
    const late = clock.sleep(connectionCloseMs, waited.signal).then(
      () => {
        throw new CloseFailed(`the connection to the sandbox has not closed in ${connectionCloseMs / 1000} s`);
      },
      // They closed in time.
      () => undefined,
    );
    try {
      await Promise.race([closed, late]);
    } finally {
      waited.abort();
    }
  };
  try {
    await once(socket, 'secureConnect', { signal: AbortSignal.any([signal, lost.signal]) });
  } catch (error) {
    await close();
    throw lost.signal.aborted ? new Error('the connection was closed during the TLS handshake', { cause: error }) : error;
  }
  const url = `https://${id}`;
  let used = false;
  const manager = new ReadableSessionManager(
    url,
    // The Session stream keeps the connection in use for as long as it lives, so that it is never closed for idleness.
    { pingIntervalMs: sessionPingMs, pingTimeoutMs: sessionPingTimeoutMs },
    {
      createConnection: () => {
        // One connection, one session: a new one is a new dial, decided by who dials.
        if (used) throw new Error('the session with the sandbox was lost');
        used = true;
        return socket;
      },
    },
  );
  const transport = createGrpcTransport({
    baseUrl: url,
    sessionManager: manager,
    // Compression costs time and, over TLS, tells sizes; nothing here needs it.
    acceptCompression: [],
    readMaxBytes: maxSessionMessageBytes,
    interceptors: [paceMessages(new TokenBucket(sessionMessagesPerSecond, sessionBurstMessages, clock), clock, () => throttled.abort())],
  });
  return {
    client: createClient(init.InitService, transport),
    shown: {
      certificate: socket.getPeerX509Certificate(),
      authorized: socket.authorized,
      authorizationError: socket.authorized ? '' : String(socket.authorizationError),
    },
    lost: lost.signal,
    throttled: throttled.signal,
    close: async () => {
      manager.abort();
      await close();
    },
  };
}

const contexts = new WeakMap<SessionCredentials, SecureContext>();

/** Parsed once for each set of credentials: every sandbox is dialled with the same. */
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
