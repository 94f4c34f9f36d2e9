import { createServer as createListener, type Server } from 'node:net';
import { createServer, setDefaultCACertificates, type SecureContextOptions, type TLSSocket } from 'node:tls';
import { limitHandshakes, systemClock } from '@drover/foundation';
import { handshakeTimeoutMs, maxConnections } from '../limits.ts';

/** SSL_OP_NO_TICKET of openssl/ssl.h. node:crypto exports it as well, but costs memory to load. */
const noTickets = 1 << 14;

/** The credentials in the run directory for the connection of the session. PEM. */
export interface ServerIdentity {
  readonly caPem: string;
  readonly certificatePem: string;
  readonly keyPem: string;
}

/** id-kp-clientAuth, RFC 5280 section 4.2.1.12. */
const clientAuth = '1.3.6.1.5.5.7.3.2';

/** Init's listener, which accepts one peer from one address. */
export interface StrictServer {
  /** Accepts the connections. Its owner calls `listen`. */
  readonly listener: Server;
  /** Presents this certificate to new connections; open ones keep theirs (I-6). @throws {Error} when OpenSSL rejects it */
  renew(identity: ServerIdentity): void;
}

export interface StrictServerOptions {
  readonly identity: ServerIdentity;
  readonly controlPlaneUri: string;
  /** The host's address. The workload reaches the port from another address. Undefined: a Unix socket, which its directory protects. */
  readonly peerAddress: string | undefined;
  readonly accept: (socket: TLSSocket) => void;
  readonly refused: (reason: string) => void;
}

/**
 * The sandbox's strict side of the session (I-3): TLS 1.3 and one permitted peer. `accept` receives a socket whose peer certificate chains to
 * the CA, allows client authentication and carries the pinned URI SAN. Any other connection is closed before application data is exchanged.
 *
 * Connections from addresses other than the host's are closed before they count against the limit. Otherwise a process in the sandbox could
 * occupy every connection and lock the control plane out.
 */
export function createStrictServer(options: StrictServerOptions): StrictServer {
  const { identity, controlPlaneUri, peerAddress, accept, refused } = options;
  // Without this OpenSSL would parse the bundled public roots for its default store: 2 MB of unused memory.
  setDefaultCACertificates([identity.caPem]);
  const server = createServer({
    ...contextOf(identity),
    requestCert: true,
    rejectUnauthorized: true,
    ALPNProtocols: ['h2'],
    // Sessions are never resumed. The explicit id only saves Node from hashing its command line at every start.
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
    // Node closes a connection whose certificate does not verify, and stores OpenSSL's code of the reason in a property.
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
      // The workload can connect any number of times, so only the first attempt is logged.
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
    // No session tickets: a resumed connection would skip the check of the certificate.
    secureOptions: noTickets,
  };
}

/** Why the peer is not the control plane; undefined when it is. */
function refusal(socket: TLSSocket, controlPlaneUri: string): string | undefined {
  if (!socket.authorized) return 'the certificate does not chain to the CA';
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return 'no certificate';
  // `keyUsage` is Node's name for the extended key usage. X.509 permits every use if it is absent; init does not.
  if (!(certificate.keyUsage as readonly string[] | undefined)?.includes(clientAuth))
    return 'the certificate is not for client authentication';
  const uris = uriNames(certificate.subjectAltName ?? '');
  if (uris.length !== 1 || uris[0] !== controlPlaneUri) return 'the certificate names someone else';
  return undefined;
}

/**
 * The URI names in OpenSSL's text form of subjectAltName, as Node returns it: `URI:…, DNS:…`. Values with special characters are quoted,
 * so only commas outside quotes separate entries. A quoted URI is never a valid name of Drover and stays quoted.
 */
export function uriNames(subjectAltName: string): readonly string[] {
  const entries = subjectAltName.match(/(?:"(?:\\.|[^"\\])*"|[^,"])+/g) ?? [];
  return entries
    .map((entry) => entry.trimStart())
    .filter((entry) => entry.startsWith('URI:'))
    .map((entry) => entry.slice(4));
}
