import { once } from 'node:events';
import type { ClientHttp2Session, ClientHttp2Stream } from 'node:http2';
import type { Duplex } from 'node:stream';
import { connect as connectTls, createSecureContext, type SecureContext, type TLSSocket } from 'node:tls';
import { createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import type { SandboxId } from '@drover/foundation';
import { init } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { farewellMs, maxInitMessageBytes, sessionPingMs, sessionPingTimeoutMs } from '../limits.ts';
import type { InitClient } from './sessions.ts';

/** The control plane's own certificate: init takes no other peer (I-3). PEM. */
export interface SessionCredentials {
  readonly certPem: string;
  readonly keyPem: string;
  readonly caPem: string;
}

/** What the peer showed. It decides nothing here (I-1): policy belongs to who reads it. */
export interface PeerVerdict {
  /** The chain verifies against the CA. */
  readonly chainTrusted: boolean;
  /** Its one URI name is that of this sandbox. */
  readonly nameMatches: boolean;
  /** In words; empty when all is well. */
  readonly problem: string;
  /** SHA-256 of the certificate's DER, lower-case hex; empty without one. */
  readonly thumbprint: string;
}

export interface Connection {
  readonly client: InitClient;
  readonly verdict: PeerVerdict;
  /** Aborts when the connection is gone. */
  readonly lost: AbortSignal;
  close(): void;
}

/** TLS and gRPC over a tunnel to one init. Takes any certificate (I-1, I-2) and says what it was. The tunnel is destroyed on failure (I-26). */
export async function connectInit(
  tunnel: Duplex,
  id: SandboxId,
  credentials: SessionCredentials,
  signal: AbortSignal,
): Promise<Connection> {
  const socket = connectTls({
    socket: tunnel,
    secureContext: contextOf(credentials),
    // I-1: a bad certificate is recorded, and talked to all the same. What is sent is no secret from the sandbox itself.
    rejectUnauthorized: false,
    // The name is a URI, which Node's own check of host names knows nothing of; verdictOf looks.
    checkServerIdentity: () => undefined,
    ALPNProtocols: ['h2'],
  });
  const lost = new AbortController();
  const gone = (): void => lost.abort(new Error('the connection to the sandbox was lost'));
  // The connection's end is told by `lost`; an error without a listener would end the process.
  socket.on('error', gone);
  tunnel.on('error', gone);
  socket.once('close', gone);
  tunnel.once('close', gone);
  // An init that was killed says no farewell, only that there will be no more bytes; one that says it closes sooner than this.
  tunnel.once('end', () => {
    const timer = setTimeout(() => socket.destroy(), farewellMs);
    tunnel.once('close', () => clearTimeout(timer));
  });
  const close = (): void => {
    socket.destroy();
    tunnel.destroy();
  };
  try {
    await once(socket, 'secureConnect', { signal: AbortSignal.any([signal, lost.signal]) });
  } catch (error) {
    close();
    throw lost.signal.aborted ? new Error('the connection was closed during the TLS handshake', { cause: error }) : error;
  }
  const url = `https://${id}`;
  let used = false;
  const manager = new GuardedSessionManager(
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
    readMaxBytes: maxInitMessageBytes,
  });
  return {
    client: createClient(init.InitService, transport),
    verdict: verdictOf(socket, id),
    lost: lost.signal,
    close: () => {
      manager.abort();
      close();
    },
  };
}

/** The manager takes its listener off a connection that it gives up; an error that this one has later would end the process. */
class GuardedSessionManager extends ReadableSessionManager {
  #guarded: ClientHttp2Session | undefined;

  override async request(...request: Parameters<ReadableSessionManager['request']>): Promise<ClientHttp2Stream> {
    const stream = await super.request(...request);
    const session = stream.session as ClientHttp2Session | undefined;
    if (session !== undefined && session !== this.#guarded) {
      this.#guarded = session;
      session.on('error', () => undefined);
    }
    return stream;
  }
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

function verdictOf(socket: TLSSocket, id: SandboxId): PeerVerdict {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return { chainTrusted: false, nameMatches: false, problem: 'no certificate', thumbprint: '' };
  const nameMatches = (certificate.subjectAltName ?? '')
    .split(', ')
    .some((name) => name.startsWith('URI:spiffe://') && name.endsWith(`/sandbox/${id}`));
  const problems = [
    ...(socket.authorized ? [] : [`the certificate does not verify (${String(socket.authorizationError)})`]),
    ...(nameMatches ? [] : ['the certificate names another']),
  ];
  return {
    chainTrusted: socket.authorized,
    nameMatches,
    problem: problems.join('; '),
    thumbprint: certificate.fingerprint256.replaceAll(':', '').toLowerCase(),
  };
}
