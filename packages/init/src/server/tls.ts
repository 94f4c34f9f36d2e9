import { createServer as createListener, type Server } from 'node:net';
import { createServer, setDefaultCACertificates, type SecureContextOptions, type TLSSocket } from 'node:tls';
import { limitHandshakes, systemClock } from '@drover/foundation';
import { handshakeTimeoutMs, maxConnections } from '../limits.ts';

/** SSL_OP_NO_TICKET of openssl/ssl.h; node:crypto has it as a constant, and costs memory to load. */
const noTickets = 1 << 14;

/** What the run directory holds for the session's connection. PEM. */
export interface ServerIdentity {
  readonly caPem: string;
  readonly certificatePem: string;
  readonly keyPem: string;
}

/** id-kp-clientAuth, RFC 5280 section 4.2.1.12. */
const clientAuth = '1.3.6.1.5.5.7.3.2';

/** Init's listener: one peer only, from one address only. */
export interface StrictServer {
  /** Accepts the connections; listens where its owner says. */
  readonly listener: Server;
  /** New connections are answered with this certificate; open ones keep theirs (I-6). @throws {Error} when OpenSSL rejects it */
  renew(identity: ServerIdentity): void;
}

export interface StrictServerOptions {
  readonly identity: ServerIdentity;
  readonly controlPlaneUri: string;
  /** The host's address: the workload, which can reach the port too, has another. Undefined: a Unix socket, which its directory protects. */
  readonly peerAddress: string | undefined;
  readonly accept: (socket: TLSSocket) => void;
  readonly refused: (reason: string) => void;
}

/**
 * The sandbox's strict side of the session (I-3): TLS 1.3, and one peer only. `accept` gets a socket whose peer chains to the CA,
 * may act as a client and carries the pinned URI SAN; any other connection is closed before a byte of it is read or written.
 *
 * Connections from another address than the host's are closed before they count: otherwise any process in the sandbox could hold every
 * connection that init accepts, and lock the control plane out.
 */
export function createStrictServer(options: StrictServerOptions): StrictServer {
  const { identity, controlPlaneUri, peerAddress, accept, refused } = options;
  // Without this OpenSSL's side would parse the whole bundled list of public roots for its default store: 2 MB that nothing uses.
  setDefaultCACertificates([identity.caPem]);
  const server = createServer({
    ...contextOf(identity),
    requestCert: true,
    rejectUnauthorized: true,
    ALPNProtocols: ['h2'],
    // Nothing is resumed. Without one, Node hashes its command line for it at every start.
    sessionIdContext: 'drover-init',
  });
  limitHandshakes(server, handshakeTimeoutMs, systemClock, () => refused('the TLS handshake took too long'));
  server.on('secureConnection', (socket) => {
    const reason = refusal(socket, controlPlaneUri);
    if (reason !== undefined) {
      refused(reason);
      socket.on('error', () => undefined);
      socket.destroy();
      return;
    }
    socket.setNoDelay(true);
    accept(socket);
  });
  server.on('tlsClientError', (error, socket) => {
    // Node hangs up on a certificate that does not verify, and says why in a property, as OpenSSL's code.
    const verdict = socket.authorizationError as unknown;
    refused(typeof verdict === 'string' ? `the certificate is not accepted (${verdict})` : (error.message.split('\n')[0] ?? ''));
    socket.destroy();
  });

  let open = 0;
  let foreign = 0;
  const listener = createListener((socket) => {
    // A connection that breaks before TLS reads it must not end init.
    socket.on('error', () => undefined);
    if (peerAddress !== undefined && socket.remoteAddress !== peerAddress) {
      // The workload can connect as often as it likes: the log gets one line.
      if (++foreign === 1) refused(`it comes from ${socket.remoteAddress}, not from the host; further ones are not logged`);
      socket.destroy();
      return;
    }
    if (open >= maxConnections) {
      refused(`${open} connections are open`);
      socket.destroy();
      return;
    }
    open++;
    socket.once('close', () => open--);
    server.emit('connection', socket);
  });
  return { listener, renew: (renewed) => server.setSecureContext(contextOf(renewed)) };
}

function contextOf(identity: ServerIdentity): SecureContextOptions {
  return {
    ca: identity.caPem,
    cert: identity.certificatePem,
    key: identity.keyPem,
    minVersion: 'TLSv1.3',
    // Every connection proves itself anew: a resumed one would skip the certificate.
    secureOptions: noTickets,
  };
}

/** Why the peer is not the control plane; undefined when it is. */
function refusal(socket: TLSSocket, controlPlaneUri: string): string | undefined {
  if (!socket.authorized) return 'the certificate does not chain to the CA';
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return 'no certificate';
  // `keyUsage` is Node's name for the extended key usage; absent, X.509 permits every use, and we do not.
  if (!(certificate.keyUsage as readonly string[] | undefined)?.includes(clientAuth))
    return 'the certificate is not for client authentication';
  const uris = uriNames(certificate.subjectAltName ?? '');
  if (uris.length !== 1 || uris[0] !== controlPlaneUri) return 'the certificate names someone else';
  return undefined;
}

/**
 * The URI names in OpenSSL's text form of subjectAltName, as Node gives it: `URI:…, DNS:…`. Values with special characters are quoted,
 * so commas count only outside quotes; a quoted URI is never ours and stays quoted.
 */
export function uriNames(subjectAltName: string): readonly string[] {
  const entries = subjectAltName.match(/(?:"(?:\\.|[^"\\])*"|[^,"])+/g) ?? [];
  return entries
    .map((entry) => entry.trimStart())
    .filter((entry) => entry.startsWith('URI:'))
    .map((entry) => entry.slice(4));
}
